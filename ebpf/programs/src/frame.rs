//! Where the network's header of an Ethernet frame is, by what is in the frame: the guard judges by it, and its records tell of it.

use crate::addr::word;
use aya_ebpf::programs::TcContext;

/// How a frame begins. EtherTypes are in network byte order.
pub struct Frame {
    /// Has it a VLAN tag beside it? (Devices that write tags themselves are given them so.)
    pub beside: bool,
    /// Its EtherType, which may be that of a VLAN tag in it.
    pub outer: u16,
    /// What is in it behind one tag at most: the EtherType, and where the header begins, in bytes. None: there are two tags in it, or it
    /// ends before.
    pub inner: Option<(u16, usize)>,
}

impl Frame {
    /// None: it ends before its EtherType.
    #[inline(always)]
    pub fn read(ctx: &TcContext) -> Option<Self> {
        // SAFETY: a field of the context.
        let beside = unsafe { word(&raw const (*ctx.skb.skb).vlan_present) } != 0;
        let outer = ctx.load::<u16>(12).ok()?;
        if !is_tag(outer) {
            return Some(Self { beside, outer, inner: Some((outer, 14)) });
        }
        let inner = match ctx.load::<u16>(16) {
            Ok(inner) if !is_tag(inner) => Some((inner, 18)),
            _ => None,
        };
        Some(Self { beside, outer, inner })
    }

    /// Has it a VLAN tag, in it or beside it?
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        self.beside || is_tag(self.outer)
    }
}

/// Is this EtherType that of a VLAN tag (802.1Q, 802.1ad)?
#[inline(always)]
fn is_tag(ether_type: u16) -> bool {
    ether_type == 0x8100u16.to_be() || ether_type == 0x88a8u16.to_be()
}
