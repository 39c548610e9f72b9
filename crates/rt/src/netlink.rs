//! What the kernel tells of a network namespace's addresses and devices.
#![allow(unsafe_code, reason = "an address of AF_NETLINK, and a descriptor registered with the runtime")]

use crate::netns::Netns;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{io, mem::MaybeUninit};
use tokio::io::{Interest, unix::AsyncFd};

/// Groups of changes (include/uapi/linux/rtnetlink.h).
const LINK: u32 = 0x1;
const TRAFFIC_CONTROL: u32 = 0x8;
const IPV4_ADDRESS: u32 = 0x10;
const IPV6_ADDRESS: u32 = 0x100;

/// An address of AF_NETLINK: the kernel's, and these multicast groups.
///
/// # Errors
/// None is known.
pub(crate) fn address(groups: u32) -> io::Result<SockAddr> {
    // SAFETY: the storage is large enough for a sockaddr_nl, which is written whole, with its own length.
    let ((), at) = unsafe {
        SockAddr::try_init(|storage, length| {
            let mut address: libc::sockaddr_nl = std::mem::zeroed();
            address.nl_family = libc::AF_NETLINK as u16;
            address.nl_groups = groups;
            storage.cast::<libc::sockaddr_nl>().write(address);
            *length = size_of::<libc::sockaddr_nl>() as u32;
            Ok(())
        })
    }?;
    Ok(at)
}

/// Tells that addresses, devices or filters of a network namespace have changed (RTM_NEWADDR, NEWLINK, NEWTFILTER, their DEL, and
/// so on).
pub struct Watch(AsyncFd<Socket>);

impl Watch {
    /// Begins to watch a namespace. What changes from here on is told.
    ///
    /// # Errors
    /// Those of the socket calls.
    pub fn of(netns: &Netns) -> io::Result<Self> {
        let kind = Type::RAW.nonblocking().cloexec();
        let socket = netns.run(|| Socket::new(Domain::from(libc::AF_NETLINK), kind, Some(Protocol::from(0))))??;
        socket.bind(&address(LINK | TRAFFIC_CONTROL | IPV4_ADDRESS | IPV6_ADDRESS)?)?;
        // SAFETY: a Socket owns its descriptor and names the same one for its whole life.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? }))
    }

    /// Waits for a change. What it was is not said: whoever hears of one looks for himself, so nothing is lost where the kernel
    /// could not tell of everything.
    ///
    /// # Errors
    /// The runtime ends.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // Before reading: what comes while reading is then told again.
        ready.clear_ready();
        let mut buf = [const { MaybeUninit::uninit() }; 8 << 10];
        loop {
            match self.0.get_ref().recv(&mut buf) {
                // Too many changes at once: said once, then reading goes on.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Ok(n) if n > 0 => {}
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }
}
