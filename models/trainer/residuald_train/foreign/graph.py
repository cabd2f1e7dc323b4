"""Builds ONNX graphs around a foreign one with the package `onnx`. Does not import torch."""

from onnx import TensorProto, compose, helper, numpy_helper

ML = "ai.onnx.ml"  # the domain of trees, support vectors and label encoders


class Builder:
    """Collects the nodes and constants of a new graph. All methods return the names of tensors.

    `opsets` {domain: version} and `ir_version` are those of the foreign model, so that its nodes keep their meaning.
    """

    def __init__(self, opsets, ir_version):
        self.opsets, self.ir_version = dict(opsets), ir_version
        self.nodes, self.initializers, self.names, self.calls = [], [], 0, 0
        self.shared = set()  # constants of foreign graphs that are in this graph already

    def name(self, what):
        self.names += 1
        return f"wrap/{what}_{self.names}"

    def constant(self, value, dtype=None):
        """An array, of `dtype` if given."""
        name = self.name("constant")
        value = value if dtype is None else value.astype(dtype)
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def add(self, op, *inputs, domain="", output=None, **attributes):
        """A node -> its first output."""
        output = output or self.name(op)
        outputs = [output, self.name(op)] if op == "TopK" else [output]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, domain=domain, **attributes))
        if domain:
            self.opsets.setdefault(domain, 3)
        return output

    def cast(self, tensor, element=TensorProto.FLOAT):
        return self.add("Cast", tensor, to=element)

    def inline(self, graph, feeds):
        """Copies a foreign graph's nodes, sharing its constants with earlier copies -> {output: tensor}.

        `feeds`: {input of the graph: tensor}.
        """
        self.calls += 1
        prefix = f"call_{self.calls}/"
        copy = compose.add_prefix_graph(
            graph, prefix, rename_inputs=False, rename_initializers=False, name_map=dict(feeds)
        )
        self.nodes.extend(copy.node)
        for initializer in copy.initializer:
            if initializer.name not in self.shared:
                self.shared.add(initializer.name)
                self.initializers.append(initializer)
        before = [value.name for value in graph.output]
        return {a: b.name for a, b in zip(before, copy.output, strict=True)}

    def one_by_one(self, graph, feeds, rows, outputs):
        """Like `inline`, but a Scan runs the graph on one row at a time -> {output: tensor [rows, ...]}.

        `rows`: the inputs of the graph that have a batch axis; all others get the same value for every row.
        `outputs`: {output: its element type}.
        """
        body = Builder(self.opsets, self.ir_version)
        body.names, body.calls, body.shared = 1_000_000 * (self.calls + 1), 1000 * (self.calls + 1), self.shared
        row = {name: body.name("row") for name in rows}
        first = body.constant_node([0])
        inside = {name: body.add("Unsqueeze", row[name], first) for name in rows}
        found = body.inline(graph, feeds | inside)
        out = {name: body.add("Squeeze", found[name], first) for name in outputs}
        scanned = [helper.make_tensor_value_info(row[name], element, None) for name, element in rows.items()]
        collected = [helper.make_tensor_value_info(out[name], element, None) for name, element in outputs.items()]
        self.initializers.extend(body.initializers)
        inner = helper.make_graph(body.nodes, "one_row", scanned, collected)
        names = {name: self.name("scanned") for name in outputs}
        self.nodes.append(
            helper.make_node(
                "Scan", [feeds[name] for name in rows], list(names.values()), body=inner, num_scan_inputs=len(rows)
            )
        )
        self.calls += 1
        return names

    def constant_node(self, values):
        """An int64 constant as a node, for the body of a Scan."""
        output = self.name("constant")
        self.nodes.append(helper.make_node("Constant", [], [output], value_ints=values))
        return output

    def model(self, inputs, outputs):
        """[(name, element type, shape)] of inputs and outputs -> the bytes of the finished model."""

        def described(tensors):
            return [helper.make_tensor_value_info(*tensor) for tensor in tensors]

        graph = helper.make_graph(
            self.nodes, "wrapped", described(inputs), described(outputs), initializer=self.initializers
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)
        model.producer_name = "residuald-train"
        return model.SerializeToString(deterministic=True)
