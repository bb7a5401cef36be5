//! Between the routers' interface and `baichuan.v1`: requests one way, replies and descriptions the other.

pub(in crate::grpc) mod describe;
pub(in crate::grpc) mod reply;
pub(in crate::grpc) mod request;
