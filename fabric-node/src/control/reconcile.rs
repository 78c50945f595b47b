//! Pure: desired state and live attachments in, snapshot inputs out.
