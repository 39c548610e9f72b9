//! Which objects are the same ones as last time: an address stands for one object as long as that is kept.

use std::collections::HashMap;

pub(crate) fn rename(all: &mut [usize], now: &HashMap<usize, usize>) {
    for one in all {
        *one = now.get(one).copied().unwrap_or(*one);
    }
}

/// What an object is known by.
pub(crate) fn address<T>(t: &T) -> usize {
    std::ptr::from_ref(t) as usize
}
