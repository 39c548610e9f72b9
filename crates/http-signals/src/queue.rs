//! A queue whose first place is its own: most connections have one request at a time, and no memory is taken for that.

use std::{collections::VecDeque, iter};

#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// None: there is none at all.
    first: Option<T>,
    /// Those behind it.
    more: VecDeque<T>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { first: None, more: VecDeque::new() }
    }
}

impl<T> Queue<T> {
    pub fn push(&mut self, one: T) {
        if self.first.is_none() {
            self.first = Some(one);
        } else {
            self.more.push_back(one);
        }
    }

    /// Takes out the first.
    pub fn pop(&mut self) -> Option<T> {
        // Mostly there is none at all, and none of it is moved.
        let first = self.first.take()?;
        self.first = self.more.pop_front();
        Some(first)
    }

    /// Takes out all, in their order.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        iter::from_fn(move || self.pop())
    }

    pub fn first(&self) -> Option<&T> {
        self.first.as_ref()
    }

    pub fn first_mut(&mut self) -> Option<&mut T> {
        self.first.as_mut()
    }

    pub fn last_mut(&mut self) -> Option<&mut T> {
        self.more.back_mut().or(self.first.as_mut())
    }

    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_first_comes_out_first() {
        let mut queue = Queue::default();
        let mut known = VecDeque::new();
        // Grows to four, and becomes empty twice.
        let pushes = [true, false, true, true, true, true, false, false, true, false, false, false];
        for (n, is_push) in pushes.into_iter().enumerate() {
            if is_push {
                queue.push(n);
                known.push_back(n);
            } else {
                assert_eq!(queue.pop(), known.pop_front());
            }
            assert_eq!((queue.len(), queue.is_empty()), (known.len(), known.is_empty()));
            assert_eq!(queue.first(), known.front());
            assert_eq!(queue.last_mut(), known.back_mut());
        }
        assert_eq!(queue.pop(), None);
        (0..3).for_each(|n| queue.push(n));
        if let Some(first) = queue.first_mut() {
            *first = 7;
        }
        assert_eq!(queue.drain().collect::<Vec<_>>(), [7, 1, 2]);
        assert!(queue.is_empty() && queue.more.is_empty());
    }
}
