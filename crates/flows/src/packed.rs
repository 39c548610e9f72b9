//! A flow's key as a book compares it: names and the template of the path one after the other in one text, and beside it a [`Head`]
//! with what is no name, and where each name ends. It is written anew for each request, in place that is used again: nothing is
//! allocated, and two keys are compared with one look at two pieces of memory. Proven by `book/tests.rs`.

use crate::{
    flow::{Destination, Key, Reporter, Seen, Source, Verdict, bits, network},
    path,
};
use karst_core::Identity;
use std::{
    hash::{BuildHasher, Hash, Hasher},
    net::IpAddr,
};

/// Identity, namespace, workload, service, policy, method; what comes after them is the path.
const NAMES: usize = 6;
const WORKLOAD: usize = 2;
const SERVICE: usize = 3;
const METHOD: usize = 5;

/// What is no name, and where in the text each name ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    reporter: Reporter,
    verdict: Verdict,
    port: u16,
    /// Of a caller without an identity.
    network: Option<IpAddr>,
    ends: [u16; NAMES],
}

impl Head {
    /// Of what was seen, whose names are no longer than those that a book keeps. The text takes the place of what was in `text`.
    pub(crate) fn write(seen: &Seen<'_>, text: &mut String) -> Self {
        text.clear();
        let identity = seen.identity.map_or("", Identity::as_str);
        let method = seen.request.map_or("", |request| request.kept_method());
        let names = [identity, seen.namespace, seen.workload, seen.service, seen.decision.policy(), method];
        let ends = names.map(|name| {
            text.push_str(name);
            // All of them have at most 2 KiB: `limits::FLOW_IDENTITY`, `FLOW_NAME`, `FLOW_METHOD`.
            text.len() as u16
        });
        if let Some(request) = seen.request {
            path::write(request.path, text);
        }
        Self {
            reporter: seen.reporter,
            verdict: seen.decision.verdict(),
            port: seen.to.port(),
            network: seen.identity.is_none().then(|| network(seen.from)),
            ends,
        }
    }

    /// Puts all paths in the place of the one that the text has.
    pub(crate) fn write_any_path(&self, text: &mut String) {
        text.truncate(usize::from(self.ends[METHOD]));
        text.push_str(path::ANY);
    }

    /// Where the ends of names are is not in it: texts that are alike but for that are rare, and are told apart when they are compared.
    pub(crate) fn hash(&self, text: &str, hasher: &impl BuildHasher) -> u64 {
        let mut state = hasher.build_hasher();
        state.write_u16(self.port);
        state.write_u8(self.reporter as u8);
        state.write_u8(self.verdict as u8);
        self.network.hash(&mut state);
        state.write(text.as_bytes());
        state.finish()
    }

    /// See [`Destination::service`].
    pub(crate) fn service<'a>(&self, text: &'a str) -> &'a str {
        text.get(usize::from(self.ends[WORKLOAD])..usize::from(self.ends[SERVICE])).unwrap_or_default()
    }

    /// See [`Key::path`].
    pub(crate) fn path<'a>(&self, text: &'a str) -> &'a str {
        text.get(usize::from(self.ends[METHOD])..).unwrap_or_default()
    }

    /// The same for who reads it.
    pub(crate) fn key(&self, text: &str) -> Key {
        let mut start = 0;
        let [identity, namespace, workload, service, policy, method] = self.ends.map(|end| {
            let name = text.get(start..usize::from(end)).unwrap_or_default();
            start = usize::from(end);
            name.to_owned()
        });
        Key {
            reporter: self.reporter,
            destination: Destination { namespace, workload, service },
            port: self.port,
            source: match self.network {
                Some(network) => Source::Addresses(format!("{network}/{}", bits(network))),
                None => Source::Identity(identity),
            },
            method,
            path: self.path(text).into(),
            verdict: self.verdict,
            policy,
        }
    }
}
