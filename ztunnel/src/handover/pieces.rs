//! A connection that goes over, as packets.

use bytes::Bytes;
use karst_api::{
    HANDOVER_PIECE,
    handover::{Given, Go, Rest, given::What},
};
use karst_hbone::copy::Left;

/// The packets of one connection, in order. The last one brings its sockets.
pub fn pieces(id: u64, up: &Left, down: &Left) -> Vec<Given> {
    let go = Go { client_ended: up.ended, server_ended: down.ended };
    let rest = |to_client: bool, rest: &Bytes| {
        rest.chunks(HANDOVER_PIECE).map(|data| What::Rest(Rest { to_client, data: data.to_vec() })).collect::<Vec<_>>()
    };
    let all = [rest(false, &up.rest), rest(true, &down.rest), vec![What::Go(go)]].concat();
    all.into_iter().map(|what| Given { id, what: Some(what) }).collect()
}
