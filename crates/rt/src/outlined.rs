//! Futures whose code is compiled once.
//!
//! To the compiler the code of an `async fn` is that of a closure: each codegen unit that polls one has a copy of it, and of
//! all that it awaits. A function that is not inlined is there once, and so is what it polls.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// A future that is polled by a function of its own. See [`outlined`].
#[derive(Debug)]
pub struct Outlined<'a, F>(Pin<&'a mut F>);

/// Polls a future by a function of its own: for what is large, and awaited in several places. It costs a call each time, and
/// no memory.
///
/// ```
/// use karst_rt::outlined::outlined;
/// use std::pin::pin;
/// # async fn connect() -> u8 { 7 }
/// # async fn f() -> u8 {
/// outlined(pin!(connect())).await
/// # }
/// ```
pub fn outlined<F: Future>(future: Pin<&mut F>) -> Outlined<'_, F> {
    Outlined(future)
}

impl<F: Future> Future for Outlined<'_, F> {
    type Output = F::Output;

    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.0.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    #[tokio::test]
    async fn it_comes_to_what_its_future_comes_to() {
        let answer = pin!(async {
            tokio::task::yield_now().await;
            7
        });
        assert_eq!(outlined(answer).await, 7);
    }
}
