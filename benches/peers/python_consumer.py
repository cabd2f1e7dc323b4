#!/usr/bin/env python3
"""The hand-tuned peer: confluent-kafka in batches, orjson, ONNX Runtime with one thread a process.

    python_consumer.py BUNDLE BROKERS GROUP RECORDS PROCESSES

Reads topic `in` from the beginning in one group, writes anomalies and dead letters, commits what is delivered. Ends
when RECORDS are done and prints a JSON line: when the first batch came and the last was committed, in monotonic
seconds, CPU seconds, memory in MiB and the number of anomalies.
"""

import json
import multiprocessing
import os
import resource
import sys
import time

BATCH = 1024


def consume(bundle, brokers, group, records, done, report):
    import orjson
    from common import Bundle
    from confluent_kafka import Consumer, Producer

    bundle = Bundle(bundle)
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
            "queued.max.messages.kbytes": 65536,
        }
    )
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 5})
    consumer.subscribe(["in"])
    first, anomalies, began = None, 0, 0.0
    while done.value < records:
        messages = consumer.consume(BATCH, 0.05)
        if not messages:
            continue
        if first is None:
            first, began = time.monotonic(), time.process_time()
        rows, kept, bad = [], [], 0
        for message in messages:
            if message.error():
                raise RuntimeError(message.error())
            try:
                record = orjson.loads(message.value())
                rows.append(bundle.row(record))
                kept.append((message, record))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                bad += 1
                producer.produce("dead-letters", message.value(), message.key(), headers={"error": repr(error)})
        sent = bad
        if rows:
            score, residual, expected = bundle.run(rows)
            for i in (score > bundle.threshold).nonzero()[0]:
                message, record = kept[i]
                name = f"{message.topic()}-{message.partition()}-{message.offset()}"
                payload = bundle.verdict(name, record, rows[i], score[i], residual[i], expected[i])
                producer.produce("anomalies", payload, message.key())
                sent += 1
                anomalies += 1
        if sent:
            producer.flush()
        consumer.commit(asynchronous=True)
        with done.get_lock():
            done.value += len(messages)
    consumer.commit(asynchronous=False) if first is not None else None
    ended, cpu = time.monotonic(), time.process_time() - began
    consumer.close()
    report.put(
        {
            "first": first,
            "ended": ended,
            "cpu_seconds": cpu if first is not None else 0.0,
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "anomalies": anomalies,
        }
    )


def main():
    bundle, brokers, group, records, processes = sys.argv[1:]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    done, report = context.Value("q", 0), context.Queue()
    arguments = (bundle, brokers, group, int(records), done, report)
    workers = [context.Process(target=consume, args=arguments) for _ in range(int(processes))]
    for worker in workers:
        worker.start()
    reports = [report.get() for _ in workers]
    for worker in workers:
        worker.join()
    print(
        json.dumps(
            {
                "first": min(r["first"] for r in reports if r["first"] is not None),
                "ended": max(r["ended"] for r in reports if r["first"] is not None),
                "cpu_seconds": sum(r["cpu_seconds"] for r in reports),
                "memory": sum(r["memory"] for r in reports),
                "anomalies": sum(r["anomalies"] for r in reports),
            }
        )
    )


if __name__ == "__main__":
    main()
