"""distmem: training for people who have too little memory."""

__version__ = "0.1.0"
