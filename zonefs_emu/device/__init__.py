"""The façade for front-ends: a ZonedDevice is a machine and an image, and a Port is one front-end's access to it."""
