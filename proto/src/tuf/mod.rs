//! The Update Framework (TUF 1.0), release repository.
