//! Builds the messages of restored images.

use crate::batch::{Batch, RestoredImage};
use crate::clip::clip;
use crate::image::{ImageReader, Lost};
use crate::kafka::Topics;
use crate::message::{Message, ModelId, restored_message};
use crate::metrics::{DENOISED, FAILED, UNCHANGED};
use crate::record::OwnedHeader;

use super::restored::RestoredTally;

/// Why a denoised image lost its colours, its depth or its transparency.
const LOSES: &str = "a denoised image is a PNG image of 8 bits in the colours of the model";
/// The part that is left out of an image that could not be denoised.
const DENOISING: &str = "denoising";

/// Builds the messages of one model's restored images.
pub struct ImageRestorer {
    /// The topic of the messages.
    pub topic: String,
    pub reader: ImageReader,
    pub model: ModelId,
    /// The names of topics, by [`crate::batch::TopicPartition::topic`].
    pub topics: Topics,
}

impl ImageRestorer {
    /// Returns one message for each of the batch's images `scored`, in their order. Building them again gives the same messages.
    pub fn messages(&self, batch: &Batch, scored: &[usize]) -> (Vec<Message>, RestoredTally) {
        let mut tally = RestoredTally::default();
        let restored = scored.iter().filter_map(|&i| {
            let restored = batch.restored_images.get(i)?.as_ref()?;
            Some(self.message(batch, i, restored, &mut tally))
        });
        (restored.collect(), tally)
    }

    fn message(
        &self,
        batch: &Batch,
        i: usize,
        restored: &RestoredImage,
        tally: &mut RestoredTally,
    ) -> Message {
        let record = batch.record(i);
        let source = record.source(&self.topics[record.from.topic]);
        let about = (record.key.map(<[u8]>::to_vec), record.timestamp_ms);
        let mut headers = record.headers.to_vec();
        let as_it_came = || record.payload.to_vec();
        let (outcome, sigma, payload, lost, failed) = match restored {
            RestoredImage::Unchanged => (UNCHANGED, Some("0"), as_it_came(), Lost::default(), None),
            RestoredImage::Failed(why) => (FAILED, None, as_it_came(), Lost::default(), Some(why)),
            RestoredImage::Denoised { png, sigma, lost } => {
                let (payload, is_bare) = self.reader.with_image(record.payload, png);
                if is_bare {
                    name_as_png(&mut headers);
                }
                (DENOISED, Some(sigma.as_str()), payload, *lost, None)
            }
        };
        match outcome {
            UNCHANGED => tally.unchanged += 1,
            FAILED => tally.failed += 1,
            _ => tally.denoised += 1,
        }
        let said = [
            ("residuald.outcome", Some(outcome)),
            ("residuald.sigma", sigma),
        ];
        let said = said
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?.to_owned())));
        let mut message =
            restored_message(&self.model, source, about, headers, payload, said.collect());
        for part in lost.names() {
            *tally.lost.entry(part).or_default() += 1;
        }
        message.omit(&lost.names(), LOSES);
        if let Some(why) = failed {
            message.omit(&[DENOISING], &clip(why));
        }
        message
    }
}

/// Corrects the type that the headers name.
fn name_as_png(headers: &mut [OwnedHeader]) {
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("content-type") {
            *value = Some(b"image/png".to_vec());
        }
    }
}
