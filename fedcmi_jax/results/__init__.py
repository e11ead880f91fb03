"""What runs came to: reading their folders, statistics over seeds, tables, reports."""
