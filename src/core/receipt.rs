//! What nodes say: receipts, refusals, missing notices; their signatures, and how a client counts them (R13).
//! Must not decide fates.
