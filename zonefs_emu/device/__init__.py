"""The façade that every front-end talks to: ZonedDevice = model + image; a Port is one front-end's hold on it."""
