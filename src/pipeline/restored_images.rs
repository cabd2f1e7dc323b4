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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::batch::TopicPartition;
    use crate::image::{FIELD, Limits, Load};
    use crate::record::Record;

    fn restorer() -> ImageRestorer {
        let pixels = json!({"height": 8, "width": 8, "channels": 1, "resize": "bilinear"});
        let topics = Topics::default();
        topics.number("in");
        ImageRestorer {
            topic: "restored".to_owned(),
            reader: ImageReader::new(
                serde_json::from_value(pixels).unwrap(),
                FIELD,
                Limits::default(),
            ),
            model: ModelId {
                name: "m".to_owned(),
                version: "1".to_owned(),
                sha256: "0123456789".to_owned(),
            },
            topics,
        }
    }

    fn header<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
        let (_, value) = message.headers.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(value.as_ref()?).ok()
    }

    #[test]
    fn what_was_done_to_an_image_is_said_and_a_refused_one_is_left_out() {
        let mut batch = Batch::default();
        let from = TopicPartition {
            topic: 0,
            partition: 0,
        };
        for (offset, payload) in (0..).zip(["bare", "flat", "bad", "nan", r#"{"image": "AAAA"}"#]) {
            let record = Record {
                topic: "in",
                partition: 0,
                offset,
                index: None,
                timestamp_ms: Some(5),
                key: Some(b"k"),
                headers: vec![("Content-Type", Some(b"image/jpeg"))],
                payload: Some(payload.as_bytes()),
            };
            batch.keep_image(&record, from, (None, Load::default()), Instant::now());
        }
        let denoised = |lost| {
            Some(Box::new(RestoredImage::Denoised {
                png: b"PNG".to_vec(),
                sigma: "12.50".to_owned(),
                lost,
            }))
        };
        let lost = Lost {
            colour: true,
            depth: false,
            transparency: true,
        };
        batch.restored_images = vec![
            denoised(lost),
            Some(Box::new(RestoredImage::Unchanged)),
            None,
            Some(Box::new(RestoredImage::Failed("it returned NaN".into()))),
            denoised(Lost::default()),
        ];
        // The third is a dead letter.
        let (messages, tally) = restorer().messages(&batch, &[0, 1, 3, 4]);
        let payloads: Vec<_> = messages.iter().map(|m| m.payload.as_slice()).collect();
        assert_eq!(
            payloads,
            [&b"PNG"[..], b"flat", b"nan", br#"{"image":"UE5H"}"#]
        );
        let said = |name| messages.iter().map(|m| header(m, name)).collect::<Vec<_>>();
        let outcomes = ["denoised", "unchanged", "failed", "denoised"].map(Some);
        assert_eq!(said("residuald.outcome"), outcomes);
        let sigmas = [Some("12.50"), Some("0"), None, Some("12.50")];
        assert_eq!(said("residuald.sigma"), sigmas);
        let types = ["image/png", "image/jpeg", "image/jpeg", "image/jpeg"].map(Some);
        assert_eq!(said("Content-Type"), types);
        assert_eq!(said("residuald.offset"), ["0", "1", "3", "4"].map(Some));
        let omitted = said("residuald.omitted");
        assert!(omitted[0].unwrap().starts_with("colour, transparency: "));
        assert_eq!(omitted[2], Some("denoising: it returned NaN"));
        assert_eq!((omitted[1], omitted[3]), (None, None));
        let counts = (tally.denoised, tally.unchanged, tally.failed);
        assert_eq!((counts, tally.lost.len()), ((2, 1, 1), 2));
        assert_eq!(
            restorer().messages(&batch, &[0, 1, 3, 4]),
            (messages, tally)
        );
    }
}
