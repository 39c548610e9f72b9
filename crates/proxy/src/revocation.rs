//! The file with the revocation lists (CRL_PATH, Istio's `ca-crl.pem`): read at the start, and again when it changes. What
//! cannot be read changes nothing: the last good lists stay in force, and log and metrics say so. A file that is not there at
//! the start holds no lists (its ConfigMap may come later); one that goes is a fault.

use crate::followed::File;
use karst_hbone::revocation::{Lists, Revocation};
use karst_rt::ready::Ready;
use std::{path::PathBuf, time::Duration};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// Reads the file, if there is to be one, and follows it. Until it could be read once the process is not ready and lets nobody
/// in. Runs in a `LocalSet`.
pub fn start(path: Option<PathBuf>, ready: &Ready) -> Revocation {
    let Some(path) = path else { return Revocation::none() };
    let revocation = Revocation::pending();
    let mut blocker = Some(ready.block("revocation lists (CRL_PATH)"));
    let mut file = file(path);
    let published = revocation.clone();
    let mut look = move || match file.look(Lists::read) {
        None => {}
        Some(Ok(lists)) => {
            tracing::info!(file = %file.path().display(), lists = lists.len(), entries = lists.entries(), "revocation lists are in force");
            published.publish(lists);
            drop(blocker.take());
        }
        Some(Err(e)) => {
            let meanwhile = match published.is_known() {
                true => "the last good ones stay in force",
                false => "all peers are rejected until they can be read",
            };
            tracing::error!("{e}; {meanwhile}");
            published.failed();
        }
    };
    look();
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            look();
        }
    });
    revocation
}

fn file(path: PathBuf) -> File {
    File::new(path, "revocation lists", "CRL_PATH")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use rcgen::{CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, SerialNumber};
    use std::fs;

    fn list() -> String {
        let now = std::time::SystemTime::now().into();
        let p = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::from_secs(60),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        p.signed_by(&Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap())).unwrap().pem().unwrap()
    }

    #[test]
    fn a_file_is_read_when_it_changes_and_a_fault_is_told_once() {
        let dir = std::env::temp_dir().join(format!("karst-crl-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("ca-crl.pem");
        let mut file = file(path.clone());
        // How many lists; or what is wrong.
        let mut look = || file.look(Lists::read).map(|r| r.map(|l| l.len()).map_err(|e| e.to_string()));
        // As a ConfigMap's volume does it: whole, and another file.
        let write = |text: &str| {
            fs::write(dir.join("new"), text).unwrap();
            fs::rename(dir.join("new"), &path).unwrap();
        };
        let fault = |seen: Option<Result<_, _>>| seen.unwrap().unwrap_err();
        assert_eq!(look(), Some(Ok(0)), "it need not be there");
        assert_eq!(look(), None);
        write(&list());
        assert_eq!(look(), Some(Ok(1)));
        assert_eq!(look(), None);
        write("nonsense");
        let e = fault(look());
        assert!(e.contains("ca-crl.pem (CRL_PATH)") && e.contains("no revocation list"), "{e}");
        assert_eq!(look(), None);
        write(&format!("{}{}", list(), list()));
        assert_eq!(look(), Some(Ok(2)));
        fs::remove_file(&path).unwrap();
        assert!(fault(look()).contains("No such file"));
        assert_eq!(look(), None);
        write("");
        assert_eq!(look(), Some(Ok(0)), "an empty one holds none");
        fs::remove_dir_all(dir).unwrap();
    }
}
