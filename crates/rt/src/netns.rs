//! Network namespaces. A thread that enters one always comes back: [`Netns::run`] restores the thread's own
//! namespace, and if that fails the process aborts, since nothing after it could be trusted.
#![allow(unsafe_code, reason = "setns and getsockopt(SO_NETNS_COOKIE)")]

use crate::process::proc_root;
use std::{
    cell::OnceCell,
    fs::{self, File},
    io,
    net::{IpAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

/// A network namespace, kept alive by its descriptor.
#[derive(Clone, Debug)]
pub struct Netns(Arc<OwnedFd>);

thread_local! {
    /// The namespace that this thread belongs to.
    static HOME: OnceCell<Netns> = const { OnceCell::new() };
}

impl Netns {
    /// Opens a namespace by path, such as `/run/netns/x` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self(Arc::new(File::open(path)?.into())))
    }
    /// Takes a descriptor that was received.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn current() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }
    /// The namespace of the pod with this uid, found by its processes' cgroups, which name it; none if no process of it runs (or
    /// all share the calling thread's namespace). Of several (a container in a container has one of its own) it is that which holds
    /// one of the pod's addresses, `ips`; else that of the oldest process.
    ///
    /// # Errors
    /// Those of opening the namespace of a process that was found (CAP_SYS_PTRACE is needed).
    pub fn of_pod(uid: &str, ips: &[IpAddr]) -> io::Result<Option<Self>> {
        let own = Netns::current()?.id()?;
        // cgroupfs driver: .../pod<uid>/...; systemd driver: ...-pod<uid with underscores>.slice/...
        let names = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
        let mut found: Vec<(u64, (u64, u64), Self)> = Vec::new();
        for entry in fs::read_dir(proc_root())?.flatten() {
            let pid = entry.file_name();
            if !pid.to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            // A process that ends meanwhile has no files any more.
            let Ok(groups) = fs::read_to_string(entry.path().join("cgroup")) else { continue };
            if !names.iter().any(|n| groups.contains(n.as_str())) {
                continue;
            }
            let (netns, id) = match Netns::open(entry.path().join("ns/net")) {
                Ok(n) => match n.id()? {
                    id if id == own => continue,
                    id => (n, id),
                },
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(e),
                Err(_) => continue,
            };
            let started =
                start_time(&fs::read_to_string(entry.path().join("stat")).unwrap_or_default()).unwrap_or(u64::MAX);
            match found.iter_mut().find(|(_, known, _)| *known == id) {
                Some((first, ..)) => *first = started.min(*first),
                None => found.push((started, id, netns)),
            }
        }
        // The sandbox's first process is older than any container's: what a container makes comes after it.
        found.sort_by_key(|(started, ..)| *started);
        let holder = found.iter().position(|(.., n)| ips.iter().any(|ip| n.holds(*ip).unwrap_or(false)));
        Ok(found.into_iter().nth(holder.unwrap_or(0)).map(|(.., n)| n))
    }
    /// Is this an address of the namespace, as its kernel sees it? (With `net.ipv4.ip_nonlocal_bind` set in it, everything is. An
    /// IPv6 address whose duplicates are still looked for is not one yet.)
    ///
    /// # Errors
    /// If the namespace cannot be entered, or no socket can be had.
    pub fn holds(&self, ip: IpAddr) -> io::Result<bool> {
        match self.run(|| UdpSocket::bind((ip, 0)))? {
            Ok(_) => Ok(true),
            // All ports are taken, which is looked at last.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
            // A kernel without IPv6.
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(false),
            Err(e) => Err(e),
        }
    }
    /// Device and inode: the same for two descriptors of the same namespace.
    ///
    /// # Errors
    /// Those of `fstat`.
    pub fn id(&self) -> io::Result<(u64, u64)> {
        use std::os::unix::fs::MetadataExt;
        let metadata = File::from(self.0.try_clone()?).metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }
    /// Runs `work` in this namespace, on the calling thread. Sockets made in it stay in it.
    ///
    /// # Errors
    /// If the namespace cannot be entered (CAP_SYS_ADMIN is needed); then `work` is not run.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let home = HOME.with(|h| match h.get() {
            Some(n) => Ok(n.clone()),
            None => Netns::current().map(|n| h.get_or_init(|| n).clone()),
        })?;
        setns(&self.0)?;
        // Dropped also when `f` panics.
        struct Back(Netns);
        impl Drop for Back {
            fn drop(&mut self) {
                if setns(&self.0.0).is_err() {
                    // Any socket made from here on would be in the wrong namespace.
                    std::process::abort();
                }
            }
        }
        let _back = Back(home);
        Ok(work())
    }
    /// The kernel's cookie of this namespace, unique while the kernel runs.
    ///
    /// # Errors
    /// Before Linux 5.14 there is none.
    pub fn cookie(&self) -> io::Result<u64> {
        self.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
            cookie_of(&socket)
        })?
    }
}

/// The kernel's cookie of the namespace that a socket is of; see [`Netns::cookie`].
///
/// # Errors
/// Before Linux 5.14 there is none.
pub fn cookie_of(socket: &impl AsFd) -> io::Result<u64> {
    let (fd, mut cookie, mut length) = (socket.as_fd().as_raw_fd(), 0u64, 8u32);
    let to = (&raw mut cookie).cast();
    // SAFETY: the kernel writes at most `length` bytes into `cookie`.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, to, &raw mut length) };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// When a process was started, in ticks since boot: field 22 of its `stat`, whose second field may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

fn setns(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: an open descriptor; only the calling thread is moved.
    if unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 2";
        assert_eq!(start_time(stat), Some(98_765));
        assert_eq!(start_time(""), None);
        assert!(start_time(&fs::read_to_string("/proc/self/stat").unwrap()).is_some());
    }

    #[test]
    fn a_socket_is_of_the_namespace_that_it_was_made_in() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let cookie = cookie_of(&socket).unwrap();
        assert!(cookie != 0 && cookie_of(&UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap() == cookie);
    }

    #[test]
    fn a_namespace_holds_its_own_addresses_only() {
        let here = Netns::current().unwrap();
        assert!(here.holds("127.0.0.1".parse().unwrap()).unwrap());
        // TEST-NET-3: nobody's.
        assert!(!here.holds("203.0.113.77".parse().unwrap()).unwrap());
    }
}
