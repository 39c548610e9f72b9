//! What is said of one end of a connection, to the process that may take it over. It is not believed: whoever takes a connection
//! over asks its own agent which pods there are, its own control plane who they are, and the policies of the moment.

use crate::{
    conn::Conn,
    inpod::LocalPod,
    metrics::Reporter,
    state::{Snapshot, Workload},
};
use karst_api::handover::{End, Offer};
use karst_core::Identity;
use karst_hbone::copy::Counts;
use karst_policy::Connection;
use karst_rt::clock::Instant;
use std::{net::SocketAddr, sync::Arc};

/// Why a connection is not taken over. The text goes to the one that leaves.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// Of another version, or gone wrong.
    #[error("{0} {1:?} cannot be read")]
    Field(&'static str, String),
    /// Not of this node, or not known yet.
    #[error("pod {0} is not known to the control plane (yet)")]
    Pod(String),
    /// It says that it comes from another one.
    #[error("pod {pod} is {own}, not {said:?}")]
    Identity {
        /// The pod's uid.
        pod: String,
        /// Who that is, as far as is known here.
        own: Identity,
        /// Who it is said to be.
        said: String,
    },
}

/// As it is said. `pod`: the one of this node.
pub fn describe(conn: &Conn, pod: &str) -> End {
    let uid = |workload: &Option<Arc<Workload>>| workload.as_ref().map_or_else(String::new, |w| w.uid.to_string());
    End {
        pod: pod.into(),
        source_address: conn.source_addr.to_string(),
        destination_address: conn.destination_addr.to_string(),
        hbone_address: conn.hbone_addr.map_or_else(String::new, |at| at.to_string()),
        mtls: conn.mtls,
        source_identity: conn.source_identity.as_ref().map_or_else(String::new, Identity::to_string),
        source_workload: uid(&conn.source),
        destination_workload: uid(&conn.destination),
        service: conn.service.as_ref().map_or_else(String::new, |service| service.key.to_string()),
    }
}

/// A connection of a pod of this node, which has opened it or serves it, as its successor is asked to take it over. `tunnel`: the other
/// side is a stream.
pub fn offer(conn: &Conn, pod: &str, tunnel: bool) -> Offer {
    let end = Some(describe(conn, pod));
    match conn.reporter {
        Reporter::Source => Offer { source: end, tunnel, ..Offer::default() },
        Reporter::Destination => Offer { destination: end, tunnel, ..Offer::default() },
    }
}

/// Of a pod of this node that has opened it.
///
/// # Errors
/// See [`EndError`].
pub fn of_source(end: &End, pod: &LocalPod, snapshot: &Snapshot) -> Result<Conn, EndError> {
    let source = snapshot.own_pod(&pod.own()).cloned().ok_or_else(|| EndError::Pod(end.pod.clone()))?;
    let mut conn = read(end, Reporter::Source, snapshot)?;
    if let Some(said) = &conn.source_identity
        && *said != source.identity
    {
        let (pod, own, said) = (end.pod.clone(), source.identity.clone(), said.to_string());
        return Err(EndError::Identity { pod, own, said });
    }
    conn.source = Some(source);
    Ok(conn)
}

/// Of a pod of this node that serves it: with what policies are to judge.
///
/// # Errors
/// See [`EndError`].
pub fn of_destination(end: &End, pod: &Arc<LocalPod>, snapshot: &Snapshot) -> Result<Conn, EndError> {
    let own = snapshot.own_pod(&pod.own()).cloned().ok_or_else(|| EndError::Pod(end.pod.clone()))?;
    let mut conn = read(end, Reporter::Destination, snapshot)?;
    conn.check = Some(Connection {
        source_identity: conn.source_identity.clone(),
        source_ip: conn.source_addr.ip(),
        destination_ip: conn.destination_addr.ip(),
        destination_port: conn.destination_addr.port(),
    });
    // An address proves nothing, as at the first time.
    let source = snapshot.workload(conn.source_addr.ip()).cloned();
    conn.source = source.filter(|s| conn.source_identity.as_ref().is_none_or(|i| *i == s.identity));
    (conn.destination, conn.pod) = (Some(own), Some(pod.clone()));
    Ok(conn)
}

fn read(end: &End, reporter: Reporter, snapshot: &Snapshot) -> Result<Conn, EndError> {
    let workload = |uid: &str| snapshot.workloads.get(uid).cloned();
    Ok(Conn {
        reporter,
        source_addr: address("source_address", &end.source_address)?,
        destination_addr: address("destination_address", &end.destination_address)?,
        hbone_addr: match end.hbone_address.as_str() {
            "" => None,
            text => Some(address("hbone_address", text)?),
        },
        source: workload(&end.source_workload),
        destination: workload(&end.destination_workload),
        service: snapshot.services.get(end.service.as_str()).cloned(),
        mtls: end.mtls,
        source_identity: match end.source_identity.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| EndError::Field("source_identity", text.into()))?),
        },
        check: None,
        pod: None,
        counts: Counts::default(),
        started: Instant::now().into_std(),
        trace: Default::default(),
    })
}

fn address(field: &'static str, text: &str) -> Result<SocketAddr, EndError> {
    text.parse().map_err(|_| EndError::Field(field, text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_proxy::testing::{pod, service, snapshot};

    fn mesh() -> Snapshot {
        let own: &[(&str, &[(u32, u32)])] = &[("ns/s.ns.svc.cluster.local", &[(80, 8080)])];
        let pods = vec![pod("a", "10.0.0.1", &[]), pod("b", "10.0.0.2", own), pod("c", "fd00::3", &[])];
        snapshot(pods, vec![service("s", "10.96.0.1", &[(80, 8080)])])
    }

    fn said(mesh: &Snapshot, reporter: Reporter) -> End {
        describe(&conn(mesh, reporter), "1")
    }

    fn conn(mesh: &Snapshot, reporter: Reporter) -> Conn {
        let workload = |last: u8| mesh.workload([10, 0, 0, last].into()).cloned();
        Conn {
            reporter,
            source_addr: ([10, 0, 0, 1], 4000).into(),
            destination_addr: ([10, 0, 0, 2], 8080).into(),
            hbone_addr: Some(([10, 0, 0, 2], 15008).into()),
            source_identity: workload(1).map(|w| w.identity.clone()),
            source: workload(1),
            destination: workload(2),
            service: mesh.services.values().next().cloned(),
            mtls: true,
            check: None,
            pod: None,
            counts: Counts::default(),
            started: Instant::now().into_std(),
            trace: Default::default(),
        }
    }

    #[test]
    fn the_end_of_a_connection_that_is_offered_is_that_of_its_record() {
        let mesh = mesh();
        for tunnel in [true, false] {
            let (opened, served) = (conn(&mesh, Reporter::Source), conn(&mesh, Reporter::Destination));
            let said = Some(describe(&opened, "1"));
            assert_eq!(offer(&opened, "1", tunnel), Offer { source: said.clone(), tunnel, ..Offer::default() });
            assert_eq!(offer(&served, "1", tunnel), Offer { destination: said, tunnel, ..Offer::default() });
        }
    }

    #[test]
    fn an_end_is_the_same_on_the_other_side() {
        let mesh = mesh();
        let end = said(&mesh, Reporter::Source);
        let conn = of_source(&end, &LocalPod::test("a", "a", "1"), &mesh).unwrap();
        assert_eq!(describe(&conn, "1"), end);
        let end = said(&mesh, Reporter::Destination);
        let local = LocalPod::test("b", "b", "1");
        let conn = of_destination(&end, &local, &mesh).unwrap();
        assert_eq!(describe(&conn, "1"), end);
        let check = conn.check.unwrap();
        assert_eq!((check.destination_port, check.source_identity), (8080, conn.source_identity));
        assert!(conn.pod.is_some_and(|pod| Arc::ptr_eq(&pod, &local)));
    }

    #[test]
    fn what_is_said_of_a_pod_is_not_believed() {
        let mesh = mesh();
        let end = said(&mesh, Reporter::Source);
        // Another pod is at the other end of that uid, or none that anybody knows.
        let other = of_source(&end, &LocalPod::test("b", "b", "1"), &mesh).err().unwrap();
        assert!(matches!(other, EndError::Identity { .. }), "{other}");
        let unknown = of_source(&end, &LocalPod::test("x", "x", "1"), &mesh).err().unwrap();
        assert!(matches!(unknown, EndError::Pod(_)), "{unknown}");
        // Who calls has another identity than who has that address: the address does not count.
        let stranger = End { source_identity: "spiffe://cluster.local/ns/ns/sa/x".into(), ..end.clone() };
        let conn = of_destination(&stranger, &LocalPod::test("b", "b", "1"), &mesh).unwrap();
        assert!(conn.source.is_none() && conn.check.unwrap().source_identity == conn.source_identity);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let mesh = mesh();
        let end = said(&mesh, Reporter::Source);
        for bad in [
            End { source_address: "10.0.0.1".into(), ..end.clone() },
            End { destination_address: String::new(), ..end.clone() },
            End { hbone_address: "x".into(), ..end.clone() },
            End { source_identity: "nobody".into(), ..end.clone() },
        ] {
            let error = of_source(&bad, &LocalPod::test("a", "a", "1"), &mesh).err().unwrap();
            assert!(matches!(error, EndError::Field(..)), "{error}");
        }
    }
}
