#!/usr/bin/env python3
"""The DDPM peer: scores records in batches with a DDPM in PyTorch, on all cores.

    ddpm_consumer.py MODEL BUNDLE BROKERS GROUP TOPIC ANOMALIES

Runs until SIGTERM. It publishes a verdict for every record, flagged or not. Compared with 250 calls of the network this
costs nothing, and with only the flagged records there would be too few verdicts to time so slow a consumer.
"""

import signal
import sys

import ddpm
import numpy as np
import orjson
import torch
from confluent_kafka import Consumer, Producer
from scoring import Bundle

BATCH, WAIT = 256, 0.005


def main():
    model, bundle, brokers, group, topic, anomalies = sys.argv[1:]
    bundle, (model, threshold) = Bundle(bundle), ddpm.load(model)
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "compression.type": "lz4"})
    settings = {"bootstrap.servers": brokers, "group.id": group, "auto.offset.reset": "earliest"}
    consumer = Consumer(settings | {"enable.auto.commit": False})
    consumer.subscribe([topic])
    running = True

    def stop(*_):
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    while running:
        messages = consumer.consume(BATCH, WAIT)
        if not messages:
            continue
        rows = [bundle.row(orjson.loads(message.value())) for message in messages]
        scores = model.score(torch.from_numpy(np.array(rows, np.float32))).tolist()
        for message, score in zip(messages, scores, strict=True):
            verdict = {
                "id": f"{topic}-{message.partition()}-{message.offset()}",
                "anomaly_score": score,
                "anomaly_grade": score / threshold,
                "record": orjson.Fragment(message.value()),
            }
            producer.produce(anomalies, orjson.dumps(verdict), message.key())
        producer.flush()
        consumer.commit(asynchronous=False)
    consumer.close()


if __name__ == "__main__":
    main()
