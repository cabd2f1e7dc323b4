//! Decodes Avro and Protobuf into rows. The plan for a record type is made when the type first occurs.

use std::collections::HashMap;

use super::avro::AvroPlan;
use super::paths::Paths;
use super::protobuf::{ProtobufPlan, Scratch};
use super::schemas::{Header, RecordType, TypeSource};
use super::segment::SegmentReader;
use super::{DecodeError, RowError, changes, headers, wire};
use crate::bundle::{Feature, SegmentId};

/// Decodes records whose types come from schemas. Each thread has its own.
#[derive(Debug)]
pub struct TypedDecoder {
    pub(super) paths: Paths,
    source: TypeSource,
    /// Plans by schema id and message index. A schema file has one entry.
    plans: HashMap<u32, Vec<(Vec<usize>, Plans)>>,
    /// The path of `op`, if the records are change events.
    op: Option<Paths>,
    scratch: Scratch,
}

#[derive(Debug)]
enum Plan {
    Avro(AvroPlan),
    Protobuf(ProtobufPlan),
}

impl Plan {
    fn new(record_type: RecordType, paths: &Paths) -> Plan {
        match record_type {
            RecordType::Avro(schema) => Plan::Avro(AvroPlan::new(schema, paths)),
            RecordType::Protobuf(message) => Plan::Protobuf(ProtobufPlan::new(&message, paths)),
        }
    }

    fn fill(
        &self,
        record: &[u8],
        paths: &Paths,
        row: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), RowError> {
        match self {
            Plan::Avro(plan) => plan.fill(record, paths, row, &mut scratch.text),
            Plan::Protobuf(plan) => plan.fill(record, paths, row, scratch),
        }
    }
}

impl Plans {
    fn new(record_type: &RecordType, paths: &Paths, op: Option<&Paths>) -> Plans {
        Plans {
            row: Plan::new(record_type.clone(), paths),
            op: op.map(|op| Plan::new(record_type.clone(), op)),
        }
    }
}

/// The plans for one record type.
#[derive(Debug)]
struct Plans {
    row: Plan,
    op: Option<Plan>,
}

impl TypedDecoder {
    /// Creates a decoder of Debezium's change events.
    pub fn of_changes(
        features: &[Feature],
        source: TypeSource,
        segment: Option<SegmentReader>,
    ) -> TypedDecoder {
        let features = changes::features_of_changes(features);
        let paths = Paths::new(&features, segment.map(changes::segment_of_changes));
        TypedDecoder::with_paths(paths, Some(changes::op()), source)
    }

    pub fn new(
        features: &[Feature],
        source: TypeSource,
        segment: Option<SegmentReader>,
    ) -> TypedDecoder {
        TypedDecoder::with_paths(Paths::new(features, segment), None, source)
    }

    fn with_paths(paths: Paths, op: Option<Paths>, source: TypeSource) -> TypedDecoder {
        let mut plans = HashMap::new();
        if let TypeSource::File(record_type) = &source {
            let plan = Plans::new(record_type, &paths, op.as_ref());
            plans.insert(0, vec![(Vec::new(), plan)]);
        }
        TypedDecoder {
            paths,
            source,
            plans,
            op,
            scratch: Scratch::default(),
        }
    }

    pub fn ask_for_schema(&self, payload: &[u8], written_ms: Option<i64>) {
        if let TypeSource::Registry(format, schemas) = &self.source
            && let Ok(header) = Header::read(*format, payload)
        {
            schemas.ask(header.id, written_ms);
        }
    }

    pub fn waits_for_schema(&self, id: u32) -> Option<String> {
        match &self.source {
            TypeSource::Registry(_, schemas) => schemas.waits_for(id),
            TypeSource::File(_) => None,
        }
    }

    /// Appends one row to `rows`, and returns the segment if a field determines it. On an error, `rows` is unchanged.
    pub fn decode(
        &mut self,
        payload: &[u8],
        rows: &mut Vec<f32>,
    ) -> Result<Option<SegmentId>, DecodeError> {
        match &self.source {
            TypeSource::File(record_type) => {
                let paths = (&self.paths, self.op.as_ref());
                let plan = &self.plans[&0][0].1;
                let filled = append(plan, paths, payload, rows, &mut self.scratch);
                let mut error = match filled {
                    Ok(segment) => return Ok(segment),
                    Err(DecodeError::Row(error)) => error,
                    Err(other) => return Err(other),
                };
                // A bare record may begin like a header, so the header is looked for last.
                if let (RecordType::Avro(schema), Some(foreign)) =
                    (record_type, headers::foreign(payload))
                {
                    let scratch = &mut self.scratch;
                    let behind = match foreign.record(Some(schema.fingerprint())) {
                        Ok(record) => append(plan, paths, &record, rows, scratch),
                        Err(error) => Err(error.into()),
                    };
                    return behind.map_err(|behind| match behind {
                        DecodeError::Row(behind) => DecodeError::Row(RowError {
                            detail: format!(
                                "{} (and behind what looks like another registry's header: {})",
                                error.detail, behind.detail
                            )
                            .into(),
                            ..behind
                        }),
                        other => other,
                    });
                }
                if wire::looks_framed(payload) {
                    let detail = format!(
                        "{} (the record seems to have the header of a schema registry, but input.schema_file is set)",
                        error.detail
                    );
                    error.detail = detail.into();
                }
                Err(error.into())
            }
            TypeSource::Registry(format, schemas) => {
                let header = Header::read(*format, payload)?;
                let known = self.plans.get(&header.id).and_then(|plans| {
                    let mut indices = plans.iter();
                    indices.position(|(index, _)| *index == header.message)
                });
                let at = match known {
                    Some(at) => at,
                    None => {
                        let record_type = header.type_in(&*schemas.get(header.id)?)?;
                        let plan = Plans::new(&record_type, &self.paths, self.op.as_ref());
                        let plans = self.plans.entry(header.id).or_default();
                        plans.push((header.message, plan));
                        plans.len() - 1
                    }
                };
                let plan = &self.plans[&header.id][at].1;
                let scratch = &mut self.scratch;
                let paths = (&self.paths, self.op.as_ref());
                append(plan, paths, header.record, rows, scratch)
            }
        }
    }
}

fn append(
    plans: &Plans,
    (paths, op): (&Paths, Option<&Paths>),
    record: &[u8],
    rows: &mut Vec<f32>,
    scratch: &mut Scratch,
) -> Result<Option<SegmentId>, DecodeError> {
    if let (Some(plan), Some(op)) = (&plans.op, op) {
        let mut row = Vec::with_capacity(1);
        op.append(&mut row, |row| plan.fill(record, op, row, scratch))?;
        if let Some(skip) = changes::skip(&row) {
            return Err(DecodeError::Nothing(skip));
        }
    }
    Ok(paths.append(rows, |row| plans.row.fill(record, paths, row, scratch))?)
}
