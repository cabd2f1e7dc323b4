//! Admin requests that rdkafka does not offer: DescribeTopics with topic ids, and ListOffsets. They use the connections
//! of an existing client.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::slice;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

/// The topic id that brokers without topic ids return.
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicDescription {
    /// `None` with brokers before Kafka 2.8.
    pub id: Option<String>,
    pub partitions: i32,
    pub is_internal: bool,
}

/// Topics by name, each with its description or the brokers' error.
pub(super) type Descriptions = BTreeMap<String, Result<TopicDescription, RDKafkaErrorCode>>;

/// First or last offsets, by topic and partition.
pub(super) type Offsets = BTreeMap<(String, i32), i64>;

/// Describes the topics in `names`, which must be distinct. Never creates a topic, even if the brokers create topics
/// automatically.
pub(super) fn describe<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    within: Duration,
) -> Result<Descriptions, RDKafkaErrorCode> {
    let Some(first) = names.first() else {
        return Ok(Descriptions::new());
    };
    let code = |e: KafkaError| e.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
    let metadata = client.fetch_metadata(Some(first), within).map_err(code)?;
    if !has_controller(client, &metadata) {
        return describe_without_ids(client, names, within).map_err(code);
    }
    let invalid = |_| RDKafkaErrorCode::InvalidTopic;
    let names: Vec<CString> = names
        .iter()
        .map(|name| CString::new(*name))
        .collect::<Result<_, _>>()
        .map_err(invalid)?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    let answer = ask(client, operation, within, |options, queue| {
        // SAFETY: librdkafka copies the names, and the collection lives until it is destroyed.
        unsafe {
            let topics =
                rd::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            rd::rd_kafka_DescribeTopics(client.native_ptr(), topics, options, queue);
            rd::rd_kafka_TopicCollection_destroy(topics);
        }
    })?;
    // SAFETY: the answer is that of DescribeTopics and owns everything read here.
    unsafe {
        let result = rd::rd_kafka_event_DescribeTopics_result(answer.0);
        let mut count = 0;
        let topics = rd::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        Ok(list(topics, count).iter().map(|t| described(*t)).collect())
    }
}

/// Returns whether the controller is one of the brokers. The embedded broker names a controller that does not exist,
/// and a request to that controller would time out.
fn has_controller<C: ClientContext>(client: &Client<C>, metadata: &Metadata) -> bool {
    // SAFETY: the client outlives the call. With a timeout of 0 it answers from the metadata that it has.
    let controller = unsafe { rd::rd_kafka_controllerid(client.native_ptr(), 0) };
    metadata.brokers().iter().any(|b| b.id() == controller)
}

fn describe_without_ids<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    within: Duration,
) -> Result<Descriptions, KafkaError> {
    let mut all = Descriptions::new();
    for name in names {
        let metadata = client.fetch_metadata(Some(name), within)?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == *name);
        let partitions = topic.map_or(0, |topic| topic.partitions().len());
        let described = match topic.and_then(|topic| topic.error()) {
            Some(code) => Err(code.into()),
            None if partitions == 0 => Err(RDKafkaErrorCode::UnknownTopicOrPartition),
            None => Ok(TopicDescription {
                id: None,
                partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
                is_internal: false,
            }),
        };
        all.insert((*name).to_owned(), described);
    }
    Ok(all)
}

/// # Safety
/// `topic` belongs to a DescribeTopics result.
unsafe fn described(
    topic: *const rd::rd_kafka_TopicDescription_t,
) -> (String, Result<TopicDescription, RDKafkaErrorCode>) {
    // SAFETY: the caller guarantees this. Names and ids are C strings that live as long as the topic.
    unsafe {
        let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
        let name = text(rd::rd_kafka_TopicDescription_name(topic));
        let code = rd::rd_kafka_error_code(rd::rd_kafka_TopicDescription_error(topic));
        if let Some(code) = failure(code) {
            return (name, Err(code));
        }
        let id = rd::rd_kafka_TopicDescription_topic_id(topic);
        let id = (!id.is_null()).then(|| text(rd::rd_kafka_Uuid_base64str(id)));
        let mut partitions = 0;
        rd::rd_kafka_TopicDescription_partitions(topic, &raw mut partitions);
        let described = TopicDescription {
            id: id.filter(|id| id != NO_ID),
            partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
            is_internal: rd::rd_kafka_TopicDescription_is_internal(topic) != 0,
        };
        (name, Ok(described))
    }
}

/// Returns the first or last offset of each partition; `end` is [`Offset::Beginning`] or [`Offset::End`]. The last
/// offset includes records of open transactions.
pub(super) fn list_offsets<C: ClientContext>(
    client: &Client<C>,
    partitions: &TopicPartitionList,
    end: Offset,
    within: Duration,
) -> Result<Offsets, RDKafkaErrorCode> {
    let mut asked = TopicPartitionList::with_capacity(partitions.count());
    for element in partitions.elements() {
        asked
            .add_partition_offset(element.topic(), element.partition(), end)
            .map_err(|_| RDKafkaErrorCode::InvalidArgument)?;
    }
    let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
    let answer = ask(client, operation, within, |options, queue| {
        // SAFETY: librdkafka copies the list.
        unsafe { rd::rd_kafka_ListOffsets(client.native_ptr(), asked.ptr(), options, queue) }
    })?;
    // SAFETY: the answer is that of ListOffsets and owns everything read here.
    unsafe {
        let result = rd::rd_kafka_event_ListOffsets_result(answer.0);
        let mut count = 0;
        let infos = rd::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
        let offsets = list(infos, count).iter().map(|info| {
            let found = &*rd::rd_kafka_ListOffsetsResultInfo_topic_partition(*info);
            if let Some(code) = failure(found.err) {
                return Err(code);
            }
            let topic = CStr::from_ptr(found.topic).to_string_lossy().into_owned();
            Ok(((topic, found.partition), found.offset))
        });
        offsets.collect()
    }
}

/// A response of librdkafka, destroyed on drop.
struct Response(*mut rd::rd_kafka_event_t);

impl Drop for Response {
    fn drop(&mut self) {
        // SAFETY: nothing that borrows from the response is left.
        unsafe { rd::rd_kafka_event_destroy(self.0) }
    }
}

/// Sends one request and waits for its answer.
fn ask<C: ClientContext>(
    client: &Client<C>,
    operation: rd::rd_kafka_admin_op_t,
    within: Duration,
    send: impl FnOnce(*const rd::rd_kafka_AdminOptions_t, *mut rd::rd_kafka_queue_t),
) -> Result<Response, RDKafkaErrorCode> {
    let within = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client outlives the call, and options and queue live until they are destroyed. librdkafka frees an answer
    // that comes after the queue is destroyed.
    let answer = unsafe {
        let options = rd::rd_kafka_AdminOptions_new(client.native_ptr(), operation);
        rd::rd_kafka_AdminOptions_set_request_timeout(options, within, std::ptr::null_mut(), 0);
        let queue = rd::rd_kafka_queue_new(client.native_ptr());
        send(options, queue);
        let event = rd::rd_kafka_queue_poll(queue, within);
        rd::rd_kafka_queue_destroy(queue);
        rd::rd_kafka_AdminOptions_destroy(options);
        event
    };
    if answer.is_null() {
        return Err(RDKafkaErrorCode::OperationTimedOut);
    }
    let answer = Response(answer);
    // SAFETY: `answer` holds an event.
    match failure(unsafe { rd::rd_kafka_event_error(answer.0) }) {
        Some(code) => Err(code),
        None => Ok(answer),
    }
}

fn failure(code: RDKafkaRespErr) -> Option<RDKafkaErrorCode> {
    let fine = code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
    (!fine).then(|| code.into())
}

/// # Safety
/// `first` points to `count` elements, or `count` is 0.
unsafe fn list<'a, T>(first: *mut T, count: usize) -> &'a [T] {
    match count {
        0 => &[],
        // SAFETY: the caller guarantees this.
        _ => unsafe { slice::from_raw_parts(first, count) },
    }
}
