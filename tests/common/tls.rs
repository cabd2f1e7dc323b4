//! Certificates made on the spot, and a client that trusts only their CA.

use std::net::TcpStream;
use std::path::Path;

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{HandshakeError, SslConnector, SslMethod, SslStream};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use super::PATIENCE;

pub struct Authority {
    certificate: X509,
    key: PKey<Private>,
}

impl Authority {
    pub fn new() -> Authority {
        let key = key();
        let mut builder = begin("CA", &key);
        let constraints = BasicConstraints::new().critical().ca().build().unwrap();
        builder.append_extension(constraints).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        Authority {
            certificate: builder.build(),
            key,
        }
    }

    /// Writes its own certificate, PEM.
    pub fn write(&self, certificate: &Path) {
        std::fs::write(certificate, self.certificate.to_pem().unwrap()).unwrap();
    }

    /// Writes a certificate for 127.0.0.1 and its key, PEM each.
    pub fn issue(&self, certificate: &Path, key_file: &Path) {
        let key = key();
        let mut builder = begin("server", &key);
        let issuer = self.certificate.subject_name();
        builder.set_issuer_name(issuer).unwrap();
        let names = SubjectAlternativeName::new()
            .ip("127.0.0.1")
            .build(&builder.x509v3_context(Some(&self.certificate), None))
            .unwrap();
        builder.append_extension(names).unwrap();
        builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        std::fs::write(certificate, builder.build().to_pem().unwrap()).unwrap();
        std::fs::write(key_file, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    }

    /// A TLS connection to `address` that trusts certificates of this authority.
    pub fn connect(
        &self,
        address: &str,
    ) -> Result<SslStream<TcpStream>, HandshakeError<TcpStream>> {
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        let trusted = connector.cert_store_mut();
        trusted.add_cert(self.certificate.clone()).unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        connector.build().connect("127.0.0.1", stream)
    }
}

fn key() -> PKey<Private> {
    let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap()
}

/// A certificate of its own issue, valid from now on.
fn begin(name: &str, key: &PKey<Private>) -> X509Builder {
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    let subject = subject.build();
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(&subject).unwrap();
    builder.set_pubkey(key).unwrap();
    let (from, to) = (Asn1Time::days_from_now(0), Asn1Time::days_from_now(1));
    builder.set_not_before(&from.unwrap()).unwrap();
    builder.set_not_after(&to.unwrap()).unwrap();
    builder
}
