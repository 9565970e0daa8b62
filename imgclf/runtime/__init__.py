"""The machine: device, precision, processes, memory."""
