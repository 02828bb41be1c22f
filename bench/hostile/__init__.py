"""Texts and tokenizers that were made to do harm, and what becomes of servers that get them."""
