//! A Kerberos realm of its own on loopback: MIT's KDC, with the brokers' and one client's keytab.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{free_port, skip};

pub const CLIENT: &str = "residuald@RESIDUALD.TEST";

/// Lives as long as this value.
pub struct Kdc {
    pub dir: PathBuf,
    server: Child,
}

impl Kdc {
    /// `None`, loudly, where it cannot be had.
    pub fn start(dir: &Path) -> Option<Kdc> {
        let programs = ["krb5kdc", "kdb5_util", "kadmin.local", "kinit"];
        let missing = programs.iter().find(|program| {
            let look = format!("PATH=$PATH:/usr/sbin command -v {program} >/dev/null");
            !Command::new("sh")
                .args(["-c", &look])
                .status()
                .unwrap()
                .success()
        });
        if let Some(program) = missing {
            let install = format!(
                "install {program} (`make tools`; Debian: krb5-kdc krb5-admin-server krb5-user)"
            );
            skip("the tests with Kerberos", &install);
            return None;
        }
        let port = free_port();
        let at = dir.display();
        let krb5 = format!(
            "[libdefaults]\ndefault_realm = RESIDUALD.TEST\ndns_lookup_kdc = false\ndns_lookup_realm = false\n\
             dns_canonicalize_hostname = false\nrdns = false\n\
             [realms]\nRESIDUALD.TEST = {{\n kdc = 127.0.0.1:{port}\n}}\n"
        );
        let kdc = format!(
            "[realms]\nRESIDUALD.TEST = {{\n database_name = {at}/principal\n key_stash_file = {at}/stash\n\
             acl_file = {at}/acl\n kdc_listen = 127.0.0.1:{port}\n kdc_tcp_listen = 127.0.0.1:{port}\n}}\n"
        );
        fs::write(dir.join("krb5.conf"), krb5).unwrap();
        fs::write(dir.join("kdc.conf"), kdc).unwrap();
        run(
            dir,
            "kdb5_util",
            &["create", "-s", "-r", "RESIDUALD.TEST", "-P", "master"],
        );
        for (principal, keytab) in [
            ("kafka/127.0.0.1", "broker.keytab"),
            ("residuald", "client.keytab"),
        ] {
            let keytab = dir.join(keytab);
            run(dir, "kadmin.local", &["addprinc", "-randkey", principal]);
            run(
                dir,
                "kadmin.local",
                &["ktadd", "-k", keytab.to_str().unwrap(), principal],
            );
        }
        let server = command(dir, "krb5kdc").arg("-n").spawn().unwrap();
        Some(Kdc {
            dir: dir.to_owned(),
            server,
        })
    }

    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Kdc {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn command(dir: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/sbin"))
        .env("KRB5_CONFIG", dir.join("krb5.conf"))
        .env("KRB5_KDC_PROFILE", dir.join("kdc.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn run(dir: &Path, program: &str, arguments: &[&str]) {
    let status = command(dir, program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
