//! The publisher puts scored batches into their order, has them judged and delivered, and returns them when they are
//! delivered.

use std::collections::BTreeMap;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, never, select};

use crate::batch::Batch;
use crate::config::Media;
use crate::kafka::Sink;
use crate::metrics::Metrics;
use crate::recent::Recent;
use crate::shutdown::Shutdown;

use super::PipelineError;
use super::delivery::{CHECK_EVERY, Delivery, Pending};
use super::drift::{Drift, QUANTILE};
use super::judging::Judging;
use super::media_folder::MediaFolder;

pub struct Publisher {
    judging: Judging,
    delivery: Delivery,
    /// Set only if the maps of images are written to a folder.
    folder: Option<MediaFolder>,
    drift: Drift,
    metrics: Metrics,
    recent: Recent,
    abandon: Shutdown,
    /// The sequence of the next batch to publish.
    next: u64,
    /// Batches that were scored before their turn.
    early: BTreeMap<u64, Batch>,
}

impl Publisher {
    pub fn new(
        judging: Judging,
        delivery: Delivery,
        metrics: Metrics,
        recent: Recent,
        abandon: Shutdown,
    ) -> Publisher {
        let folder = match &judging.output.media {
            Some(Media::Folder(path)) => Some(MediaFolder::new(path.clone(), metrics.clone())),
            _ => None,
        };
        Publisher {
            drift: Drift::new(judging.judge.normal_quantile(QUANTILE)),
            judging,
            delivery,
            folder,
            metrics,
            recent,
            abandon,
            next: 0,
            early: BTreeMap::new(),
        }
    }

    /// Runs until the workers have ended and everything is delivered, or until delivery is abandoned. Returns the
    /// producer.
    ///
    /// # Errors
    /// When a message can never be delivered, or Kafka fails for good.
    pub fn run(
        mut self,
        scored: &Receiver<Batch>,
        give_back: &Sender<Batch>,
    ) -> Result<Sink, PipelineError> {
        let result = self.publish_all(scored, give_back);
        let sink = self.delivery.into_sink();
        result.map(|()| sink)
    }

    fn publish_all(
        &mut self,
        scored: &Receiver<Batch>,
        give_back: &Sender<Batch>,
    ) -> Result<(), PipelineError> {
        let (mut scored, nothing_more) = (scored.clone(), never());
        let mut open = true;
        while (open || !self.delivery.is_idle()) && !self.abandon.is_requested() {
            let answers = self.delivery.answers();
            let patience = self.delivery.due_in(Instant::now());
            select! {
                recv(scored) -> batch => match batch {
                    Ok(batch) => {
                        self.early.insert(batch.sequence, batch);
                    }
                    Err(_) => {
                        open = false;
                        scored = nothing_more.clone();
                    }
                },
                recv(answers) -> answer => {
                    if let Ok(answer) = answer {
                        self.delivery.answered(answer)?;
                    }
                }
                default(patience.map_or(CHECK_EVERY, |left| left.min(CHECK_EVERY))) => {}
            }
            self.publish_in_order()?;
            self.delivery.hand_over_if_due()?;
            self.delivery.commit_if_due(&mut self.judging)?;
            self.finish(give_back);
        }
        Ok(())
    }

    /// Publishes the batches that are next in order, until the folder cannot be written.
    fn publish_in_order(&mut self) -> Result<(), PipelineError> {
        while let Some(batch) = self.early.remove(&self.next) {
            if !self.writes_maps(&batch) {
                self.early.insert(batch.sequence, batch);
                break;
            }
            self.next += 1;
            self.delivery.publish(&mut self.judging, batch)?;
        }
        Ok(())
    }

    /// Writes the maps of a batch into the folder. Returns `false` if the write must be retried later. The maps are
    /// written before the batch is published, because no transaction may stay open while a disk is full.
    fn writes_maps(&mut self, batch: &Batch) -> bool {
        match &mut self.folder {
            Some(folder) if !self.delivery.is_lost(batch.sequence) => {
                folder.write(self.judging.maps_for_folder(batch))
            }
            _ => true,
        }
    }

    /// Gives completely delivered batches back to the intake, in order.
    fn finish(&mut self, give_back: &Sender<Batch>) {
        while let Some(finished) = self.delivery.take_finished() {
            let Pending {
                batch,
                mut tally,
                losses,
                published,
                ..
            } = finished;
            if tally.lost == 0 {
                if let Some(traces) = &self.judging.traces {
                    traces.send(&batch, &tally, published, &self.judging.topics);
                }
                let drift = self.drift.see(batch.fair_scores());
                self.metrics.score_drift_ratio.set(drift);
            }
            let (records, anomalies) = (batch.consumed(), tally.anomalies.len());
            tracing::debug!(
                sequence = batch.sequence,
                records,
                anomalies,
                "batch delivered"
            );
            tally.lose(losses);
            tally.count(&batch, &self.metrics, &self.recent);
            // The intake may have ended after a drain that took too long.
            let _ = give_back.send(batch);
        }
    }
}
