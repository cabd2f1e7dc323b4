//! The labelled stream: real normal records that the bundle keeps, then those of the user, then drawn records with anomalies among them.
//!
//! Drawn records are a little more ordinary than real ones, so false alarms are counted on real ones.

use jiff::Zoned;

use crate::bundle::{Bundle, Generative};
use crate::dataset::Example;
use crate::onnx::generative::Sampler;
use crate::shutdown::Shutdown;
use crate::synthetic::anomalies::{Injector, Kind, Wishes};
use crate::synthetic::records::Records;

use crate::cli::shared::progress;
use crate::failure::Failure;

/// The kinds of anomalies. Ramps are left out, because the daemon judges each record alone.
const KINDS: [Kind; 4] = [Kind::Tail, Kind::Foreign, Kind::Relation, Kind::Unseen];

/// A part of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Normal records that the bundle keeps and was not trained on.
    Calm,
    /// The real records of the user.
    Sample,
    /// Drawn records with anomalies among them.
    Incident,
}

impl Part {
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Calm => "calm",
            Part::Sample => "sample",
            Part::Incident => "incident",
        }
    }
}

/// What is known of a record that is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct About {
    pub part: Part,
    pub anomaly: Option<Anomaly>,
}

/// The kind and the strength of an anomaly. An unseen category has no strength.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Anomaly {
    pub kind: Kind,
    pub strength: Option<f32>,
}

/// What to draw.
pub struct Draw<'a> {
    /// Number of drawn records, and maximum number of those that the bundle keeps.
    pub records: u64,
    /// Share of the drawn records that become anomalies.
    pub anomalies: f64,
    /// Ascending.
    pub strengths: &'a [f32],
    pub seed: u64,
}

/// The stream in its order.
pub struct Stream {
    pub about: Vec<About>,
    pub payloads: Vec<Vec<u8>>,
    /// The kinds of anomalies that the schema does not allow, and why.
    pub notes: Vec<String>,
}

/// Makes the stream: the calm part, `sample`, and the incident.
///
/// # Errors
/// The bundle cannot draw, or a stop was requested.
pub fn draw(
    draw: &Draw<'_>,
    mut sampler: Sampler,
    bundle: &Bundle,
    generative: &Generative,
    sample: Vec<Example>,
    stop: &Shutdown,
    hidden: bool,
) -> Result<Stream, Failure> {
    let (features, width) = (bundle.features(), bundle.features().len());
    let today = Zoned::now().date();
    let records = Records::new(features, &generative.about, &[], today, draw.seed);
    let records = records.map_err(Failure::data)?;
    let (injectors, notes) = injectors(draw, bundle, generative)?;
    let mut stream = Stream {
        about: Vec::new(),
        payloads: Vec::new(),
        notes,
    };
    let held_out = generative.reference.held_out.chunks_exact(width);
    // Numbers above those of the drawn records, for the parts of times that no feature holds.
    for (number, row) in (draw.records..).zip(held_out.take(draw.records as usize)) {
        let cells = records.cells(number, row, &[]);
        stream.add(Part::Calm, None, records.json(&cells));
    }
    for example in sample {
        stream.add(Part::Sample, None, example.payload);
    }
    let bar = progress::of_count(draw.records, "records drawn", hidden);
    let mut number = 0;
    while number < draw.records {
        if stop.is_requested() {
            return Err(Failure::interrupted(format!(
                "interrupted: {number} of {} records were drawn, and none was sent",
                draw.records
            )));
        }
        let count = sampler.at_once().min(draw.records - number) as usize;
        let free = vec![0.0; count * width];
        let mut rows = sampler.draw(number, &free, &free)?;
        for row in rows.chunks_exact_mut(width) {
            let anomaly = inject(&injectors, number, row);
            let cells = records.cells(number, row, &[]);
            stream.add(Part::Incident, anomaly, records.json(&cells));
            number += 1;
        }
        bar.set_position(number);
    }
    bar.finish_and_clear();
    Ok(stream)
}

impl Stream {
    fn add(&mut self, part: Part, anomaly: Option<Anomaly>, payload: Vec<u8>) {
        self.about.push(About { part, anomaly });
        self.payloads.push(payload);
    }

    /// Returns the payloads of a part.
    pub fn of(&self, part: Part) -> impl Iterator<Item = &[u8]> {
        let pairs = self.about.iter().zip(&self.payloads);
        pairs
            .filter(move |(about, _)| about.part == part)
            .map(|(_, payload)| payload.as_slice())
    }
}

/// A strength and its injector.
type Injection = (f32, Injector);

/// Makes an injector for each strength.
fn injectors(
    draw: &Draw<'_>,
    bundle: &Bundle,
    generative: &Generative,
) -> Result<(Vec<Injection>, Vec<String>), Failure> {
    let held = vec![false; bundle.features().len()];
    let mut injectors = Vec::new();
    let mut notes = Vec::new();
    for (number, &strength) in (1..).zip(draw.strengths) {
        let wishes = Wishes {
            share: draw.anomalies,
            kinds: KINDS.to_vec(),
            strength,
            has_keys: false,
            seed: draw.seed.wrapping_add(number),
        };
        let (about, reference) = (&generative.about, &generative.reference);
        let made = Injector::new(wishes, bundle.features(), about, reference, &held);
        let (injector, lacking) = made.map_err(Failure::data)?;
        injectors.push((strength, injector));
        notes = lacking;
    }
    Ok((injectors, notes))
}

/// Turns the row number `place` into an anomaly if its turn has come. A row that stays as it was is normal.
fn inject(injectors: &[Injection], place: u64, row: &mut [f32]) -> Option<Anomaly> {
    let strengths = injectors.len() as u64;
    let (strength, injector) = &injectors[(place % strengths) as usize];
    let before = row.to_vec();
    let kind = injector.apply(place / strengths, row)?;
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
    if before.iter().zip(&*row).all(same) {
        return None;
    }
    let strength = match kind {
        Kind::Unseen => None,
        // The other side is the farthest that a rank can move.
        Kind::Relation => Some(strength.min(1.0)),
        _ => Some(*strength),
    };
    Some(Anomaly { kind, strength })
}
