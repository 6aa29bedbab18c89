"""The scorer over HTTP: `talker-rl serve`. The service knows nothing of training.

    app         routes, errors, the answers' form        guard     token, body limits, one log line per request
    protocol    what goes over the wire                   openrlhf  the adapter for OpenRLHF's reward requests
    engine      admission, cache, deadlines, queues       metrics   Prometheus
    queues      batches by length                         canary    is a worker right?
    pool        worker processes, restarted when they die
    worker      what runs inside one: decode or recognize
    frames      how the two sides talk (no pickle)        fingerprint  what a score depends on

Only workers import torch: the process that listens stays small and cannot be taken down by a model.
"""
