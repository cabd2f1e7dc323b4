//! Checks an ONNX graph before ONNX Runtime loads it: it must contain all of its data. Otherwise ONNX Runtime would read files
//! that no hash in the manifest covers, relative to the working directory.
//!
//! Only the Protobuf fields that lead to tensors are declared here. All others are skipped. `prost` and ONNX Runtime both refuse
//! messages that are nested more than 100 levels deep.

use prost::Message;

/// The `data_location` of a tensor whose data is in the model file itself.
const INSIDE: i32 = 0;
/// The byte range and the magic bytes that identify ONNX Runtime's own file format, which this check cannot read.
const ORT_FORMAT: (std::ops::Range<usize>, &[u8]) = (4..8, b"ORTM");
/// An operator that runs code from a file outside the graph.
const CONTEXT: &str = "EPContext";

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

/// An entry of `external_data`. Only its presence matters, so its content is not declared.
#[derive(Clone, PartialEq, Message)]
struct Entry {}

/// Returns why the ONNX model in `bytes` must not be loaded: it is not ONNX, or it depends on data outside the file.
pub fn fault(bytes: &[u8]) -> Option<String> {
    let (position, magic) = ORT_FORMAT;
    if bytes.get(position) == Some(magic) {
        return Some("is in ONNX Runtime's own format: export it as ONNX".to_owned());
    }
    match OnnxModel::decode(bytes) {
        Ok(model) => model.fault(),
        Err(e) => Some(format!("is not an ONNX model: {e}")),
    }
}

impl OnnxModel {
    fn fault(&self) -> Option<String> {
        let training = self.training.iter();
        let training = training.flat_map(|t| t.initialization.iter().chain(&t.algorithm));
        let graphs = self.graph.iter().chain(training);
        graphs
            .map(Graph::fault)
            .chain(self.functions.iter().map(Function::fault))
            .find_map(|fault| fault)
    }
}

impl Function {
    fn fault(&self) -> Option<String> {
        let nodes = self.nodes.iter().find_map(Node::fault);
        nodes.or_else(|| self.defaults.iter().find_map(Attribute::fault))
    }
}

impl Graph {
    fn fault(&self) -> Option<String> {
        let tensors = self.initializers.iter().find_map(Tensor::fault);
        tensors
            .or_else(|| self.sparse.iter().find_map(SparseTensor::fault))
            .or_else(|| self.nodes.iter().find_map(Node::fault))
    }
}

impl Node {
    fn fault(&self) -> Option<String> {
        if self.operator == CONTEXT.as_bytes() {
            return Some(format!(
                "has an {CONTEXT} node, which runs code from outside the graph: export the plain graph"
            ));
        }
        self.attributes.iter().find_map(Attribute::fault)
    }
}

impl Attribute {
    fn fault(&self) -> Option<String> {
        let tensors = self.tensor.iter().chain(&self.tensors);
        let sparse = self.sparse.iter().chain(&self.sparse_list);
        let graphs = self.graph.iter().chain(&self.graphs);
        tensors
            .map(Tensor::fault)
            .chain(sparse.map(SparseTensor::fault))
            .chain(graphs.map(Graph::fault))
            .find_map(|fault| fault)
    }
}

impl SparseTensor {
    fn fault(&self) -> Option<String> {
        let parts = self.values.iter().chain(&self.indices);
        parts.map(Tensor::fault).find_map(|fault| fault)
    }
}

impl Tensor {
    fn fault(&self) -> Option<String> {
        if self.location == INSIDE && self.external.is_empty() {
            return None;
        }
        let name: String = String::from_utf8_lossy(&self.name)
            .chars()
            .take(80)
            .collect();
        Some(format!(
            "tensor `{name}` keeps its data in another file, which no hash covers: export the graph without external data"
        ))
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
            external: vec![Entry {}],
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
