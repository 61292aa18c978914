//! What a program keeps for each connection.

use netio3::Endpoint;

/// A map by endpoint without hashing: the lower bits of a handle index its backend's table, and ours alike.
pub struct Table<T>(Vec<Option<(Endpoint, T)>>);

const INDEX_MASK: u64 = (1 << 24) - 1;

impl<T> Table<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a connection.
    pub fn insert(&mut self, endpoint: Endpoint, value: T) {
        let index = index(endpoint);
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some((endpoint, value));
    }

    /// A connection's entry.
    #[inline]
    pub fn get_mut(&mut self, endpoint: Endpoint) -> Option<&mut T> {
        match self.0.get_mut(index(endpoint)) {
            Some(Some((owner, value))) if *owner == endpoint => Some(value),
            _ => None,
        }
    }

    /// Takes a connection's entry out.
    pub fn remove(&mut self, endpoint: Endpoint) -> Option<T> {
        let place = self.0.get_mut(index(endpoint))?;
        match place {
            Some((owner, _)) if *owner == endpoint => place.take().map(|(_, value)| value),
            _ => None,
        }
    }

    /// All connections.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Endpoint, &mut T)> {
        self.0.iter_mut().flatten().map(|(endpoint, value)| (*endpoint, value))
    }
}

#[inline]
fn index(endpoint: Endpoint) -> usize {
    (endpoint.as_u64() & INDEX_MASK) as usize
}
