//! Checks an ONNX graph before ONNX Runtime loads it. That of a bundle must contain all of its data. Otherwise ONNX Runtime would read files
//! that no hash in the manifest covers, relative to the working directory.
//!
//! Only the Protobuf fields that lead to tensors are declared here. All others are skipped. `prost` and ONNX Runtime both refuse
//! messages that are nested more than 100 levels deep.

use std::collections::BTreeSet;

use prost::Message;

/// The `data_location` of a tensor whose data is in the model file itself.
const INSIDE: i32 = 0;
/// The byte range and the magic bytes that identify ONNX Runtime's own file format, which this check cannot read.
const ORT_FORMAT: (std::ops::Range<usize>, &[u8]) = (4..8, b"ORTM");
/// An operator that runs code from a file outside the graph.
const CONTEXT: &str = "EPContext";
/// The entry of `external_data` that names a file.
const LOCATION: &[u8] = b"location";

#[derive(Clone, PartialEq, Message)]
struct OnnxModel {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "20")]
    training: Vec<Training>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<Function>,
}

#[derive(Clone, PartialEq, Message)]
struct Training {
    #[prost(message, optional, tag = "1")]
    initialization: Option<Graph>,
    #[prost(message, optional, tag = "2")]
    algorithm: Option<Graph>,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(message, repeated, tag = "7")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "11")]
    defaults: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializers: Vec<Tensor>,
    #[prost(message, repeated, tag = "15")]
    sparse: Vec<SparseTensor>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(bytes = "vec", tag = "4")]
    operator: Vec<u8>,
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(message, optional, tag = "5")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "6")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<Graph>,
    #[prost(message, optional, tag = "22")]
    sparse: Option<SparseTensor>,
    #[prost(message, repeated, tag = "23")]
    sparse_list: Vec<SparseTensor>,
}

#[derive(Clone, PartialEq, Message)]
struct SparseTensor {
    #[prost(message, optional, tag = "1")]
    values: Option<Tensor>,
    #[prost(message, optional, tag = "2")]
    indices: Option<Tensor>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(bytes = "vec", tag = "8")]
    name: Vec<u8>,
    #[prost(message, repeated, tag = "13")]
    external: Vec<Entry>,
    #[prost(int32, tag = "14")]
    location: i32,
}

/// An entry of `external_data`.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Returns why the ONNX model in `bytes` must not be loaded: it is not ONNX, or it depends on data outside the file.
pub fn fault(bytes: &[u8]) -> Option<String> {
    let outside = match outside(bytes) {
        Ok(outside) => outside,
        Err(problem) => return Some(problem),
    };
    let (name, _) = outside.first()?;
    Some(format!(
        "tensor `{name}` keeps its data in another file, which no hash covers: export the graph without external data"
    ))
}

/// Returns the files, relative to the model's own, in which the ONNX model in `bytes` keeps data.
///
/// # Errors
/// A message, if it is not an ONNX model, or runs code from a file.
pub fn external_files(bytes: &[u8]) -> Result<BTreeSet<String>, String> {
    let files = outside(bytes)?.into_iter().map(|(_, file)| file);
    Ok(files.collect())
}

/// The tensors with data outside of the model, each with its file.
fn outside(bytes: &[u8]) -> Result<Vec<(String, String)>, String> {
    let (position, magic) = ORT_FORMAT;
    if bytes.get(position) == Some(magic) {
        return Err("is in ONNX Runtime's own format: export it as ONNX".to_owned());
    }
    let model = OnnxModel::decode(bytes).map_err(|e| format!("is not an ONNX model: {e}"))?;
    let mut found = Found::default();
    model.walk(&mut found);
    match found.has_context {
        true => Err(format!(
            "has an {CONTEXT} node, which runs code from outside the graph: export the plain graph"
        )),
        false => Ok(found.outside),
    }
}

/// What a walk through a model finds.
#[derive(Default)]
struct Found {
    /// Name and file.
    outside: Vec<(String, String)>,
    has_context: bool,
}

impl OnnxModel {
    fn walk(&self, found: &mut Found) {
        let training = self.training.iter();
        let training = training.flat_map(|t| t.initialization.iter().chain(&t.algorithm));
        let graphs = self.graph.iter().chain(training);
        graphs.for_each(|graph| graph.walk(found));
        self.functions.iter().for_each(|f| f.walk(found));
    }
}

impl Function {
    fn walk(&self, found: &mut Found) {
        self.nodes.iter().for_each(|node| node.walk(found));
        self.defaults.iter().for_each(|value| value.walk(found));
    }
}

impl Graph {
    fn walk(&self, found: &mut Found) {
        self.initializers.iter().for_each(|t| t.walk(found));
        self.sparse.iter().for_each(|t| t.walk(found));
        self.nodes.iter().for_each(|node| node.walk(found));
    }
}

impl Node {
    fn walk(&self, found: &mut Found) {
        found.has_context |= self.operator == CONTEXT.as_bytes();
        self.attributes.iter().for_each(|value| value.walk(found));
    }
}

impl Attribute {
    fn walk(&self, found: &mut Found) {
        let tensors = self.tensor.iter().chain(&self.tensors);
        tensors.for_each(|t| t.walk(found));
        let sparse = self.sparse.iter().chain(&self.sparse_list);
        sparse.for_each(|t| t.walk(found));
        let graphs = self.graph.iter().chain(&self.graphs);
        graphs.for_each(|graph| graph.walk(found));
    }
}

impl SparseTensor {
    fn walk(&self, found: &mut Found) {
        let parts = self.values.iter().chain(&self.indices);
        parts.for_each(|t| t.walk(found));
    }
}

impl Tensor {
    fn walk(&self, found: &mut Found) {
        if self.location == INSIDE && self.external.is_empty() {
            return;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let file = self.external.iter().find(|entry| entry.key == LOCATION);
        let file = file.map(|entry| text(&entry.value)).unwrap_or_default();
        let name = text(&self.name).chars().take(80).collect();
        found.outside.push((name, file));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn external() -> Tensor {
        Tensor {
            name: b"weights".to_vec(),
            location: 1,
            external: vec![],
        }
    }

    fn in_graph(node: Node) -> Graph {
        Graph {
            nodes: vec![node],
            ..Graph::default()
        }
    }

    fn with(attribute: Attribute) -> Node {
        Node {
            operator: b"Any".to_vec(),
            attributes: vec![attribute],
        }
    }

    fn model(graph: Graph) -> OnnxModel {
        OnnxModel {
            graph: Some(graph),
            ..OnnxModel::default()
        }
    }

    #[test]
    fn external_data_is_found_wherever_a_tensor_can_be() {
        let initializer = Graph {
            initializers: vec![Tensor::default(), external()],
            ..Graph::default()
        };
        let sparse = |tensor| SparseTensor {
            values: Some(Tensor::default()),
            indices: Some(tensor),
        };
        let entries_alone = Tensor {
            external: vec![Entry::default()],
            ..Tensor::default()
        };
        let constant = |tensor| Attribute {
            tensor: Some(tensor),
            ..Attribute::default()
        };
        let body = Attribute {
            graphs: vec![Graph::default(), initializer.clone()],
            ..Attribute::default()
        };
        let nested = Attribute {
            graph: Some(in_graph(with(body))),
            ..Attribute::default()
        };
        let models = [
            model(initializer.clone()),
            model(Graph {
                sparse: vec![sparse(external())],
                ..Graph::default()
            }),
            model(in_graph(with(constant(external())))),
            model(in_graph(with(constant(entries_alone)))),
            model(in_graph(with(Attribute {
                tensors: vec![external()],
                ..Attribute::default()
            }))),
            model(in_graph(with(Attribute {
                sparse: Some(sparse(external())),
                ..Attribute::default()
            }))),
            model(in_graph(with(Attribute {
                sparse_list: vec![sparse(external())],
                ..Attribute::default()
            }))),
            model(in_graph(with(nested))),
            OnnxModel {
                functions: vec![Function {
                    nodes: vec![with(constant(external()))],
                    defaults: vec![],
                }],
                ..OnnxModel::default()
            },
            OnnxModel {
                functions: vec![Function {
                    nodes: vec![],
                    defaults: vec![constant(external())],
                }],
                ..OnnxModel::default()
            },
            OnnxModel {
                training: vec![Training {
                    initialization: None,
                    algorithm: Some(initializer),
                }],
                ..OnnxModel::default()
            },
        ];
        for model in models {
            let fault = fault(&model.encode_to_vec());
            let said = fault.is_some_and(|fault| fault.contains("keeps its data in another file"));
            assert!(said, "{model:?}");
        }
    }

    #[test]
    fn the_files_of_external_data_are_told() {
        let entry = |key: &str, value: &str| Entry {
            key: key.into(),
            value: value.into(),
        };
        let tensor = Tensor {
            external: vec![entry("offset", "0"), entry("location", "weights/a.data")],
            ..external()
        };
        let graph = Graph {
            initializers: vec![tensor.clone(), Tensor::default(), tensor],
            ..Graph::default()
        };
        let files = external_files(&model(graph).encode_to_vec()).unwrap();
        assert_eq!(files, BTreeSet::from(["weights/a.data".to_owned()]));
        assert!(external_files(b"\xff").is_err());
    }

    #[test]
    fn what_runs_a_file_and_what_cannot_be_read_is_refused() {
        let context = Node {
            operator: CONTEXT.into(),
            attributes: vec![],
        };
        let refused = [
            (model(in_graph(context)).encode_to_vec(), "EPContext"),
            (b"\x08\x01\x08\x01ORTM".to_vec(), "own format"),
            (b"\xff\xff\xff".to_vec(), "not an ONNX model"),
            (deep(200), "not an ONNX model"),
        ];
        for (bytes, said) in refused {
            let fault = fault(&bytes).unwrap();
            assert!(fault.contains(said), "{fault}");
        }
        assert_eq!(fault(&deep(20)), None);
    }

    /// A model with nested graphs.
    fn deep(levels: usize) -> Vec<u8> {
        let wrap = |graph, _| {
            in_graph(with(Attribute {
                graph: Some(graph),
                ..Attribute::default()
            }))
        };
        model((0..levels).fold(Graph::default(), wrap)).encode_to_vec()
    }
}
