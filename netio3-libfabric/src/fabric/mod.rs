//! libfabric in types that own what they stand for.
