"""Turn Options into a ready Endpoint: find an engine, start it, know what it can do."""
