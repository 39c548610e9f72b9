//! Where a worker's requests and connections are counted and told of.

use crate::{
    config::Config,
    logs::{self, record::Record, rules::Export},
    snapshot::Snapshot,
    spans::{self, common::Own, queue::Queue, tags::Ended},
    telemetry::{
        flag::ResponseFlag,
        key::{Key, KeyRef},
        labels,
        metrics::{Metrics, Series},
        rules::Telemetry,
        stream_info::StreamInfo,
        tapped,
    },
};
use hashbrown::HashMap;
use karst_proxy::{state::Workload, tap::Taps, traffic::Traffic};
use std::{cell::RefCell, hash::RandomState, rc::Rc, sync::Arc, time::Duration};
use tokio::sync::watch;

/// A worker's way to the process's metrics.
pub struct Sink {
    config: Config,
    state: watch::Receiver<Arc<Snapshot>>,
    metrics: Arc<Metrics>,
    taps: Arc<Taps>,
    series: RefCell<HashMap<Key, Arc<Series>, RandomState>>,
    pub spans: Rc<spans::recorder::Recorder>,
    pub logs: Rc<logs::recorder::Recorder>,
    myself: RefCell<Myself>,
}

/// Where is told of what has ended, besides the metrics.
pub struct Ways {
    /// Takes the spans of requests that are traced.
    pub spans: Queue,
    /// Takes the access log for collectors.
    pub logs: Queue,
    /// Who looks on.
    pub taps: Arc<Taps>,
}

/// This proxy, as the state has it that was looked at last.
struct Myself {
    state: watch::Receiver<Arc<Snapshot>>,
    workload: Option<Arc<Workload>>,
    /// It is another state than that of the spans recorded last.
    is_new: bool,
}

impl Myself {
    /// Looks at the newest state.
    fn look(&mut self, config: &Config) {
        let changed = self.state.has_changed();
        // Where there is nobody any more who would tell of a change, it is asked for each time.
        if changed.as_ref().is_ok_and(|changed| !changed) {
            return;
        }
        let workload = config.own_pod(&self.state.borrow_and_update().mesh).cloned();
        self.workload = workload;
        self.is_new |= changed.is_ok();
    }
}

impl Sink {
    /// Counts in these metrics, and tells by these ways.
    pub fn new(config: Config, state: watch::Receiver<Arc<Snapshot>>, metrics: Arc<Metrics>, ways: Ways) -> Self {
        let own = Own {
            node_id: config.node().id.into(),
            mesh_id: config.certificates.trust_domain.as_str().into(),
            cluster_id: config.place.cluster_id.as_str().into(),
            namespace: config.pod_namespace.as_str().into(),
            hostname: config.pod_name.as_str().into(),
            account: config.account.as_str().into(),
            is_gateway: config.is_gateway(),
        };
        let mut myself = Myself { state: state.clone(), workload: None, is_new: false };
        myself.state.mark_changed();
        let Ways { spans, logs, taps } = ways;
        let spans = Rc::new(spans::recorder::Recorder::new(spans, own.clone()));
        let logs = Rc::new(logs::recorder::Recorder::new(logs, own));
        let (series, myself) = (RefCell::default(), RefCell::new(myself));
        Self { config, state, metrics, taps, series, spans, logs, myself }
    }

    /// Records the spans of a request that has ended.
    pub fn trace(&self, ended: Ended<'_>) {
        let mut myself = self.myself.borrow_mut();
        myself.look(&self.config);
        let is_new = std::mem::take(&mut myself.is_new);
        self.spans.add(myself.workload.as_ref(), is_new, ended);
    }

    /// Records a request or connection that has ended, for these collectors of the log.
    pub fn export<'a>(&self, exports: impl Iterator<Item = &'a Export>, record: Record<'_>) {
        let mut myself = self.myself.borrow_mut();
        myself.look(&self.config);
        self.logs.add(exports, myself.workload.as_ref(), record);
    }

    /// Tells whoever looks on what has ended.
    pub fn tap(&self, info: &StreamInfo, took: Duration, sent: u64) {
        if self.taps.is_looked_at() {
            let own = self.own(info);
            self.taps.tell(|| tapped::ended(info, took, sent, own.as_deref()));
        }
    }

    /// Tells whoever looks on of a connection that has come about.
    pub fn tap_opened(&self, info: &StreamInfo) {
        if self.taps.is_looked_at() {
            let own = self.own(info);
            self.taps.tell(|| tapped::opened(info, own.as_deref()));
        }
    }

    /// Is there an access log?
    pub fn access_log(&self) -> bool {
        self.config.access_log
    }

    /// The name of this proxy's pod.
    pub fn hostname(&self) -> &str {
        &self.config.pod_name
    }

    /// A gateway tells of what it calls itself.
    fn own(&self, info: &StreamInfo) -> Option<Arc<Workload>> {
        info.at_gateway.then(|| self.config.own_pod(&self.state.borrow().mesh).cloned()).flatten()
    }

    /// Counts a request in its series, which is looked for in this worker's table. `count` adds it.
    pub fn count(
        &self,
        key: KeyRef<'_>,
        info: &StreamInfo,
        telemetry: Option<&Telemetry>,
        count: impl FnOnce(&Series),
    ) {
        /// Beyond, the table is begun anew.
        const MOST: usize = 10_000;
        let mut all = self.series.borrow_mut();
        if let Some(series) = all.get(&key).filter(|series| !series.is_retired()) {
            return count(series);
        }
        let key = key.to_key();
        if all.len() >= MOST {
            all.clear();
        }
        let series =
            self.metrics.series(&key, |k| labels::labels(info, self.own(info).as_deref(), telemetry, &k.values));
        count(&series);
        all.insert(key, series);
    }

    /// The series of a connection that is carried as it is.
    pub fn traffic(&self, info: &StreamInfo, flag: ResponseFlag) -> Arc<Traffic> {
        let own = self.own(info);
        self.metrics.traffic.series(&labels::between(info, own.as_deref()), flag.text())
    }
}
