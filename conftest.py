"""What pytest needs to know about this project before it collects."""
