//! Open connections outlive this process, should it be killed (KARST_SURVIVE_KILL; docs/survival.md): its spare goes on with them.
//!
//! - [`keep`]: what a process begins with. Its connections are entered where they are carried (`relay::plain`, `relay::stream`).
//! - [`take`]: what its spare has of it. [`revive`]: how they go on.
//! - [`counts`]: what has become of them.
//!
//! What must always hold: a connection is carried by one process. The dead one carries none any more, as the supervisor has waited for
//! it; what goes over to another ztunnel is taken out of the table before. And nothing that the dead one has written is believed: the
//! kernel says what the sockets are and how far they have come, and all else is decided anew, as for a connection that is handed over.
//! Proven by tests/world (`restarts`), and in parts by `karst_rt::survive` and `crates/hbone/tests/survival`.

pub mod counts;
pub mod revive;

use karst_rt::{
    clock::Instant,
    seqpacket::Channel,
    survive::{
        ahead,
        claim::{Claim, Single, claim},
        holder::Holder,
        table::Table,
    },
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

/// What has not been taken by then is cut. New connections wait for it, and for the end of the holder, which closes the rest.
const TAKE_LIMIT: Duration = Duration::from_millis(100);
/// How often it is looked whether the holder is there.
const LOOK: Duration = Duration::from_secs(5);

/// What a process begins with.
pub struct Kept {
    /// Of its open connections.
    pub table: Arc<Table>,
    holder: Holder,
}

/// Begins to keep connections, with so many workers. To be called first: before there is another thread, or a key in memory.
///
/// # Errors
/// There is no supervisor on standard input, or the system does not let us.
pub fn keep(workers: usize) -> io::Result<Kept> {
    let supervisor = Channel::from_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let table = Table::new(workers)?;
    let holder = Holder::start(table.as_fd(), &supervisor)?;
    Ok(Kept { table, holder })
}

/// Says so if the kernel is too old for what goes by tunnels.
pub fn tell_of_kernel() {
    if !ahead::is_supported() {
        tracing::warn!(
            "KARST_SURVIVE_KILL: this kernel cannot look ahead in TCP sockets (Linux 6.12 can): a crash will cut connections by tunnels"
        );
    }
}

/// Says so if nobody holds the connections any more.
pub async fn watch(holder: Holder) {
    while !holder.has_ended() {
        tokio::time::sleep(LOOK).await;
    }
    tracing::error!("the process that holds open connections has ended: a crash of this one will cut them");
}

impl Kept {
    /// Its parts: the table, and what is to be watched.
    pub fn parts(self) -> (Arc<Table>, Holder) {
        (self.table, self.holder)
    }
}

/// Connections of the process before that are to go on.
pub struct Taken {
    connections: Vec<Claim>,
    /// Those by tunnels.
    singles: Vec<Single>,
    /// In its table, and not to be had.
    lost: usize,
    began: Instant,
}

/// Takes the open connections of the process before. After it all ports of that process are free.
pub async fn take(holder: OwnedFd) -> Taken {
    let began = Instant::now();
    let (connections, singles, lost) = match claim(holder, TAKE_LIMIT).await {
        Ok(claimed) => (claimed.connections, claimed.singles, claimed.lost),
        Err(e) => {
            tracing::warn!(error = %e, "open connections of the process before cannot go on: they are cut");
            (vec![], vec![], 0)
        }
    };
    Taken { connections, singles, lost, began }
}
