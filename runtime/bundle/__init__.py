"""The format on disk: schema, manifest, files, reader, writer."""
