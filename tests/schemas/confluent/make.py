"""Writes registered.json: the schemas that Confluent's ProtobufSerializer registers, and the messages that it sends.

    pip install "confluent-kafka[protobuf,schemaregistry]==2.16.1" grpcio-tools==1.85.1
    python tests/schemas/confluent/make.py

`schemas` holds the registry's responses by schema id, and `subjects` those by subject and version. `orders` holds an
Order.Line and an Order.Line.Discount, and `payments` the first payments of the sample, all in base64.
"""

import base64
import gzip
import importlib
import json
import sys
import tempfile
from pathlib import Path

from confluent_kafka import schema_registry
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import json_format
from grpc_tools import protoc

HERE = Path(__file__).parent
SAMPLE = HERE.parents[2] / "models/payments/sample.ndjson.gz"
PAYMENTS = 30
# The sources of confluent/meta.proto and others, which the package contains only in compiled form.
KNOWN = HERE.parents[2] / "src/decode/protobuf/known"


def compile_protos(folder: Path) -> None:
    """Compiles all .proto files into `folder`, so that their modules can be imported. Exits if protoc fails."""
    for name, source in (
        *((str(path.relative_to(KNOWN)), path) for path in KNOWN.rglob("*.proto")),
        ("payment.proto", HERE.parent / "payment.proto"),
        *((str(path.relative_to(HERE)), path) for path in HERE.rglob("*.proto")),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source.read_text())
    names = ["payment.proto", "order.proto", "base/money.proto", "base/currency.proto"]
    google = Path(protoc.__file__).parent / "_proto"
    status = protoc.main(["", f"-I{folder}", f"-I{google}", f"--python_out={folder}", *names])
    if status:
        sys.exit(f"protoc failed with exit status {status} (see above)")
    # Makes the package's compiled confluent/*.proto importable under the names that generated code uses.
    sys.path[:0] = [str(folder), str(Path(schema_registry.__file__).parent)]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        compile_protos(Path(scratch))
        order = importlib.import_module("order_pb2").Order
        payment = importlib.import_module("payment_pb2").Payment
        registry = SchemaRegistryClient.new_client({"url": "mock://"})

        def serialized(topic: str, messages: list) -> list[str]:
            serializer = ProtobufSerializer(type(messages[0]), registry, {"use.deprecated.format": False})
            context = SerializationContext(topic, MessageField.VALUE)
            return [base64.b64encode(serializer(message, context)).decode() for message in messages]

        line = order.Line(article="tea", discount=order.Line.Discount(percent=12.5))
        line.price.value, line.price.currency = 3.75, 1
        line.picked.FromJsonString("2026-03-09T06:00:00Z")
        line.weight.value, line.weight.precision, line.weight.scale = b"\x01\x2c", 3, 1
        orders = serialized("lines", [line]) + serialized("discounts", [line.discount])

        with gzip.open(SAMPLE, "rt") as sample:
            texts = [next(sample) for _ in range(PAYMENTS)]
        parsed = [json_format.Parse(text, payment(), ignore_unknown_fields=True) for text in texts]
        payments = serialized("payments", parsed)

        def answer(schema: Schema) -> dict:
            references = [{"name": r.name, "subject": r.subject, "version": r.version} for r in schema.references or []]
            return {"schema": schema.schema_str, "schemaType": schema.schema_type, "references": references}

        subjects, schemas = {}, {}
        for subject in registry.get_subjects():
            for version in registry.get_versions(subject):
                found = registry.get_version(subject, version)
                subjects[f"{subject}/{version}"] = answer(found.schema)
                schemas[str(found.schema_id)] = answer(found.schema)
        made = {"schemas": schemas, "subjects": subjects, "orders": orders, "payments": payments}
        (HERE / "registered.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
