package residuald;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * The Java peer. Each thread has its own consumer and session; all threads share one producer.
 *
 * <p>Usage: Peer BUNDLE BROKERS GROUP TOPIC ANOMALIES THREADS. Runs until SIGTERM. Delivery is at least once: offsets
 * are committed after all verdicts before them are delivered.
 */
final class Peer implements Runnable {
    private static final int BATCH = 1024;
    private static final int REASONS = 5;
    private static final long COMMIT = 1_000_000_000;

    private final Bundle bundle;
    private final String topic;
    private final String anomalies;
    private final KafkaConsumer<byte[], byte[]> consumer;
    private final KafkaProducer<byte[], byte[]> producer;
    private final OrtEnvironment environment;
    private final OrtSession session;
    private final JsonFactory json = new JsonFactory();
    private final FloatBuffer rows;
    private final float[] row;
    private volatile Exception undelivered;

    Peer(Bundle bundle, Path model, String brokers, String group, String topic, String anomalies, KafkaProducer<byte[], byte[]> producer)
            throws OrtException {
        this.bundle = bundle;
        this.topic = topic;
        this.anomalies = anomalies;
        this.producer = producer;
        consumer = new KafkaConsumer<>(
                Map.of(
                        "bootstrap.servers", brokers,
                        "group.id", group,
                        "auto.offset.reset", "earliest",
                        "enable.auto.commit", false,
                        "max.poll.records", BATCH,
                        // Without a backlog, the broker briefly waits for a batch to fill before it responds.
                        "fetch.min.bytes", 1 << 18,
                        "fetch.max.wait.ms", 5,
                        "heartbeat.interval.ms", 500),
                new ByteArrayDeserializer(),
                new ByteArrayDeserializer());
        environment = OrtEnvironment.getEnvironment();
        var options = new OrtSession.SessionOptions();
        options.setIntraOpNumThreads(1);
        options.setInterOpNumThreads(1);
        session = environment.createSession(model.toString(), options);
        row = new float[bundle.names.length];
        rows = ByteBuffer.allocateDirect(4 * BATCH * row.length).order(ByteOrder.nativeOrder()).asFloatBuffer();
    }

    public static void main(String[] arguments) throws Exception {
        var folder = Path.of(arguments[0]);
        var bundle = new Bundle(folder);
        var producer = new KafkaProducer<>(
                Map.<String, Object>of(
                        "bootstrap.servers", arguments[1],
                        "linger.ms", 5,
                        "compression.type", "lz4",
                        "delivery.timeout.ms", Integer.MAX_VALUE),
                new ByteArraySerializer(),
                new ByteArraySerializer());
        List<Peer> peers = new ArrayList<>();
        List<Thread> threads = new ArrayList<>();
        for (int i = 0; i < Integer.parseInt(arguments[5]); i++) {
            var peer = new Peer(
                    bundle, folder.resolve("model.onnx"), arguments[1], arguments[2], arguments[3], arguments[4], producer);
            peers.add(peer);
            threads.add(new Thread(peer, "peer-" + i));
        }
        for (Thread thread : threads) {
            thread.setUncaughtExceptionHandler((t, error) -> {
                error.printStackTrace();
                Runtime.getRuntime().halt(1);
            });
            thread.start();
        }
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            peers.forEach(peer -> peer.consumer.wakeup());
            threads.forEach(Peer::join);
            producer.close();
        }));
    }

    private static void join(Thread thread) {
        try {
            thread.join();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    @Override
    public void run() {
        try (consumer) {
            consumer.subscribe(List.of(topic), new ConsumerRebalanceListener() {
                @Override
                public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
                    commit();
                }

                @Override
                public void onPartitionsAssigned(Collection<TopicPartition> partitions) {}
            });
            long committed = System.nanoTime();
            try {
                while (true) {
                    judge(consumer.poll(Duration.ofMillis(100)));
                    if (System.nanoTime() - committed > COMMIT) {
                        commit();
                        committed = System.nanoTime();
                    }
                }
            } catch (WakeupException stop) {
                commit();
            }
        } catch (OrtException | IOException e) {
            throw new IllegalStateException(e);
        }
    }

    /** Commits the consumer's positions. The caller must have judged every polled record. */
    private void commit() {
        producer.flush();
        if (undelivered != null) {
            throw new IllegalStateException(undelivered);
        }
        consumer.commitSync();
    }

    private void judge(ConsumerRecords<byte[], byte[]> polled) throws OrtException, IOException {
        List<ConsumerRecord<byte[], byte[]>> judged = new ArrayList<>(polled.count());
        rows.clear();
        for (var message : polled) {
            try {
                bundle.decode(message.value(), row);
                rows.put(row);
                judged.add(message);
            } catch (IOException e) {
                send(new ProducerRecord<>("dead-letters", message.key(), message.value()));
            }
        }
        if (judged.isEmpty()) {
            return;
        }
        long[] shape = {judged.size(), row.length};
        try (var x = OnnxTensor.createTensor(environment, rows.flip(), shape);
                var outputs = session.run(Map.of("x", x))) {
            FloatBuffer score = floats(outputs, "score");
            FloatBuffer residual = null;
            FloatBuffer expected = null;
            for (int i = 0; i < judged.size(); i++) {
                if (score.get(i) > bundle.threshold) {
                    if (residual == null) {
                        residual = floats(outputs, "residual");
                        expected = floats(outputs, "reconstruction");
                    }
                    var of = judged.get(i);
                    send(new ProducerRecord<>(anomalies, of.key(), verdict(of, i, score.get(i), residual, expected)));
                }
            }
        }
    }

    private static FloatBuffer floats(OrtSession.Result outputs, String name) {
        return ((OnnxTensor) outputs.get(name).orElseThrow()).getFloatBuffer();
    }

    private void send(ProducerRecord<byte[], byte[]> message) {
        producer.send(message, (delivered, error) -> {
            if (error != null) {
                undelivered = error;
            }
        });
    }

    private byte[] verdict(ConsumerRecord<byte[], byte[]> of, int i, float score, FloatBuffer residual, FloatBuffer expected)
            throws IOException {
        int first = i * row.length;
        double total = IntStream.range(0, row.length).mapToDouble(j -> residual.get(first + j)).sum();
        int[] top = IntStream.range(0, row.length)
                .boxed()
                .sorted((a, b) -> Float.compare(residual.get(first + b), residual.get(first + a)))
                .limit(REASONS)
                .mapToInt(Integer::intValue)
                .toArray();
        var bytes = new ByteArrayOutputStream(2048);
        try (JsonGenerator out = json.createGenerator(bytes)) {
            out.writeStartObject();
            out.writeStringField("id", of.topic() + "-" + of.partition() + "-" + of.offset());
            out.writeObjectFieldStart("source");
            out.writeStringField("topic", of.topic());
            out.writeNumberField("partition", of.partition());
            out.writeNumberField("offset", of.offset());
            out.writeEndObject();
            out.writeObjectFieldStart("model");
            out.writeStringField("name", bundle.name);
            out.writeStringField("version", bundle.version);
            out.writeEndObject();
            out.writeNumberField("anomaly_score", score);
            out.writeNumberField("p_value", bundle.pValue(score));
            out.writeNumberField("anomaly_grade", score / bundle.threshold);
            out.writeNumberField("threshold", bundle.threshold);
            out.writeArrayFieldStart("relevant_attribution");
            for (int j : top) {
                out.writeStartObject();
                out.writeStringField("feature", bundle.names[j]);
                out.writeNumberField("share", residual.get(first + j) / total);
                float observed = rows.get(first + j);
                if (!Float.isNaN(observed)) {
                    out.writeNumberField("observed", observed);
                }
                out.writeNumberField("expected", expected.get(first + j));
                out.writeEndObject();
            }
            out.writeEndArray();
            out.writeFieldName("record");
            out.writeRawValue(new String(of.value(), StandardCharsets.UTF_8));
            out.writeEndObject();
        }
        return bytes.toByteArray();
    }
}
