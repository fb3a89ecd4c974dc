//! The encoding of messages: postcard, which is small, is bounded by the
//! packet, and gives a hostile sender no way to describe types of its own.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Failure, Result};

/// A message that travels alone in a packet. The implementations stand beside
/// the types.
pub trait Message: Serialize + DeserializeOwned {
    /// The name of the message in errors.
    const NAME: &str;

    /// Returns the message's bytes.
    fn encode(&self) -> Result<Vec<u8>> {
        postcard::to_stdvec(self)
            .map_err(|e| Error::internal(format!("encode {}: {e}", Self::NAME)))
    }

    /// Reads what [`Message::encode`] returned. Allocates no more than `bytes` holds.
    fn decode(bytes: &[u8]) -> Result<Self> {
        postcard::from_bytes(bytes)
            .map_err(|e| Error::internal(format!("decode {}: {e}", Self::NAME)))
    }
}

impl Message for Failure {
    const NAME: &str = "a failure";
}
