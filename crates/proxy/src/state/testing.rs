//! What several files' tests here need.

use karst_api::workload as pb;
use prost::Message;

/// The workload with the uid of its pod, as our own controller tells it.
pub(super) fn with_uid(mut w: pb::Workload, uid: &str) -> pb::Workload {
    let value = karst_api::route::Pod { uid: uid.into() }.encode_to_vec();
    let config = Some(prost_types::Any { type_url: karst_api::POD_TYPE.into(), value });
    w.extensions.push(pb::Extension { name: "karst.pod".into(), config });
    w
}
