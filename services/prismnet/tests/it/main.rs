//! The data plane in real namespaces. Needs root, as the data plane does; without it the tests fail.

mod dhcp;
mod guest;
mod plane;
