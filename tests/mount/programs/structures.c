/* structures ROUNDS: a tree, a list and blocks that grow; one number tells of all of them. */
#include "check.h"

struct node {
    struct node *left, *right;
    uint64_t key, value;
};

struct link {
    struct link *next;
    uint64_t value;
    char rest[200];
};

static uint32_t seed = 2463534242;

static struct node *insert(struct node *at, uint64_t key)
{
    if (!at) {
        at = malloc(sizeof(*at));
        *at = (struct node){NULL, NULL, key, key * 3};
    } else if (key < at->key) {
        at->left = insert(at->left, key);
    } else if (key > at->key) {
        at->right = insert(at->right, key);
    }
    return at;
}

static uint64_t sum_and_free(struct node *at)
{
    uint64_t sum;
    if (!at)
        return 7;
    sum = at->value ^ (sum_and_free(at->left) * 31 + sum_and_free(at->right));
    free(at);
    return sum;
}

static uint64_t tree(void)
{
    struct node *root = NULL;
    for (int i = 0; i < 20000; i++)
        root = insert(root, next(&seed) % 1000000);
    return sum_and_free(root);
}

static uint64_t list(void)
{
    struct link *head = NULL, *rest;
    uint64_t sum = 0;
    for (int i = 0; i < 20000; i++) {
        struct link *link = malloc(sizeof(*link));
        link->value = next(&seed);
        link->next = head;
        head = link;
    }
    for (; head; head = rest) {
        rest = head->next;
        sum = sum * 33 + head->value;
        free(head);
    }
    return sum;
}

static uint64_t growth(void)
{
    uint64_t sum = 0;
    size_t size = 4096;
    unsigned char *bytes = calloc(1, size);
    for (; size < 5 << 20; size = size * 3 / 2) {
        for (size_t i = 0; i < size; i += 512)
            sum = sum * 131 + bytes[i];
        for (size_t i = 0; i < size; i += 512)
            bytes[i] = (unsigned char)next(&seed);
        bytes = realloc(bytes, size * 3 / 2);
        for (size_t i = 0; i < size; i += 512)
            sum = sum * 131 + bytes[i];
        memset(bytes + size, 0, size * 3 / 2 - size);
    }
    free(bytes);
    return sum;
}

int main(int count, char **argument)
{
    int rounds = count > 1 ? atoi(argument[1]) : 1;
    uint64_t total = 0;
    while (rounds--)
        total = ((total * 131 + tree()) * 131 + list()) * 131 + growth();
    printf("%lu\n", total);
}
