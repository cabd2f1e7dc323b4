//! Decodes Avro and Protobuf into rows. The plan for a record type is made when the type first occurs.

use std::collections::HashMap;

use super::avro::AvroPlan;
use super::paths::Paths;
use super::protobuf::{ProtobufPlan, Scratch};
use super::schemas::{Header, RecordType, TypeSource};
use super::segment::SegmentReader;
use super::{DecodeError, RowError, headers, wire};
use crate::bundle::{Feature, SegmentId};

/// Decodes records whose types come from schemas. Each thread has its own.
#[derive(Debug)]
pub struct TypedDecoder {
    pub(super) paths: Paths,
    source: TypeSource,
    /// Plans by schema id and message index. A schema file has one entry.
    plans: HashMap<u32, Vec<(Vec<usize>, Plan)>>,
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
}

impl TypedDecoder {
    pub fn new(
        features: &[Feature],
        source: TypeSource,
        segment: Option<SegmentReader>,
    ) -> TypedDecoder {
        let paths = Paths::new(features, segment);
        let mut plans = HashMap::new();
        if let TypeSource::File(record_type) = &source {
            let plan = Plan::new(record_type.clone(), &paths);
            plans.insert(0, vec![(Vec::new(), plan)]);
        }
        TypedDecoder {
            paths,
            source,
            plans,
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
                let plan = &self.plans[&0][0].1;
                let filled = append(plan, &self.paths, payload, rows, &mut self.scratch);
                let mut error = match filled {
                    Ok(segment) => return Ok(segment),
                    Err(error) => error,
                };
                // A bare record may begin like a header, so the header is looked for last.
                if let (RecordType::Avro(schema), Some(foreign)) =
                    (record_type, headers::foreign(payload))
                {
                    let scratch = &mut self.scratch;
                    let behind = foreign.record(Some(schema.fingerprint()));
                    let behind = behind.and_then(|r| append(plan, &self.paths, &r, rows, scratch));
                    return Ok(behind.map_err(|behind| RowError {
                        detail: format!(
                            "{} (and behind what looks like another registry's header: {})",
                            error.detail, behind.detail
                        )
                        .into(),
                        ..behind
                    })?);
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
                        let plan = Plan::new(record_type, &self.paths);
                        let plans = self.plans.entry(header.id).or_default();
                        plans.push((header.message, plan));
                        plans.len() - 1
                    }
                };
                let plan = &self.plans[&header.id][at].1;
                let scratch = &mut self.scratch;
                Ok(append(plan, &self.paths, header.record, rows, scratch)?)
            }
        }
    }
}

fn append(
    plan: &Plan,
    paths: &Paths,
    record: &[u8],
    rows: &mut Vec<f32>,
    scratch: &mut Scratch,
) -> Result<Option<SegmentId>, RowError> {
    paths.append(rows, |row| match plan {
        Plan::Avro(plan) => plan.fill(record, paths, row, &mut scratch.text),
        Plan::Protobuf(plan) => plan.fill(record, paths, row, scratch),
    })
}
