"""The client side of flower_loop.py, imported by name in Ray's worker processes."""

import functools
import json

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peer import Spec, load_data
from torch_best import Best

app = ClientApp()


@functools.cache
def trainer(spec: str) -> Best:
    """This process's model and data, kept for all clients and rounds."""
    torch.set_num_threads(1)
    spec = Spec(**json.loads(spec))
    return Best(spec, load_data(spec))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One client's local training from the arrays of the message."""
    best = trainer(message.content["config"]["spec"])
    best.load_state(message.content["arrays"].to_torch_state_dict())
    client = best.clients[context.node_config["partition-id"]]
    best.train_client(client)
    content = RecordDict(
        {
            "arrays": ArrayRecord(best.state()),
            "metrics": MetricRecord({"num-examples": len(client.labels)}),
        }
    )
    return Message(content=content, reply_to=message)
