"""Raw datasets to LLaVA jsonl to HDF5 shards; runs without torch.

raw record - datasets/NAME.read -> Conversation - jsonl
jsonl - template.render -> Spans - encode -> Sample - lay_out -> Row - ShardWriter -> shard-00000.h5
"""
