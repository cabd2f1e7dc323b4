//! librdkafka's calls to its decompressors go through `src/kafka/decompression/hooks.rs`, which bounds what they may take.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    for function in [
        "rd_gz_decompress",
        "rd_kafka_lz4_decompress",
        "rd_kafka_zstd_decompress",
        "rd_kafka_snappy_java_uncompress",
        "rd_kafka_snappy_uncompressed_length",
        "rd_kafka_snappy_uncompress",
        "rd_kafka_buf_new_shadow",
    ] {
        println!("cargo:rustc-link-arg=-Wl,--wrap={function}");
    }
}
