"""The parts of `dataprep.llm_client`, which is the door to them."""
