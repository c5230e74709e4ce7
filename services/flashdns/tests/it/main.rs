//! The server on real sockets, examined by the real `dig`, by hostile bytes and by a lying resolver.

mod dig;
mod forward;
mod hostile;
mod support;
