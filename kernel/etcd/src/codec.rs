//! Protobuf in small buffers. tonic gives every message a buffer of 8 KiB to begin with; most of
//! etcd's messages are a few hundred bytes, and blocks of that size are slow to get from the system's
//! allocator (measured: a tenth of the server's time).

use std::marker::PhantomData;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// First size of a message's buffer. It grows as needed.
const BUFFER: usize = 512;

/// Bytes of a stream that are gathered before they are sent; tonic's own default.
const GATHER: usize = 32 << 10;

/// What the generated code uses (see `tests/it/codegen.rs`).
#[derive(Debug)]
pub struct SmallCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallCodec<T, U> {
    fn default() -> Self {
        SmallCodec(PhantomData)
    }
}

impl<T, U> Codec for SmallCodec<T, U>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, GATHER))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, GATHER))
    }
}
