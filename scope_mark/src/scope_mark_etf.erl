%% SPDX-License-Identifier: Apache-2.0
%% External terms of a stranger's file, read without making atoms or terms of them
%% (erts/doc/guides/erl_ext_dist.md): attributes, and the literals of behaviour_info/1.
-module(scope_mark_etf).
-export([read/1, append/2, attribute/2]).
-export_type([term_/0]).

%% What is neither atom, small integer, list nor tuple is `other'.
-type term_() :: {atom, binary()} | integer() | [term_()] | {tuple, [term_()]} | other.

-define(MAX_DEPTH, 200).

%% One whole term with its version byte.
-spec read(binary()) -> term_().
read(<<131, Bin/binary>>) ->
    case term(Bin, 0) of
        {Term, <<>>} -> Term;
        _ -> throw({bad_file, external_term})
    end;
read(_) ->
    throw({bad_file, external_term}).

term(_, Depth) when Depth > ?MAX_DEPTH -> throw({bad_file, external_term});
term(<<97, N, R/binary>>, _) -> {N, R};
term(<<98, N:32/signed, R/binary>>, _) -> {N, R};
term(<<119, S, Name:S/binary, R/binary>>, _) -> {{atom, Name}, R};
term(<<118, S:16, Name:S/binary, R/binary>>, _) -> {{atom, Name}, R};
term(<<100, S:16, Name:S/binary, R/binary>>, _) -> {{atom, utf8(Name)}, R};
term(<<115, S, Name:S/binary, R/binary>>, _) -> {{atom, utf8(Name)}, R};
term(<<104, N, R/binary>>, D) -> tuple(N, R, D);
term(<<105, N:32, R/binary>>, D) -> tuple(N, R, D);
term(<<106, R/binary>>, _) -> {[], R};
term(<<107, S:16, Bytes:S/binary, R/binary>>, _) -> {binary_to_list(Bytes), R};
term(<<108, N:32, R/binary>>, D) ->
    {Terms, R1} = terms(N, R, D, []),
    case term(R1, D + 1) of
        {[], R2} -> {Terms, R2};
        {_, R2} -> {other, R2}
    end;
term(<<109, S:32, _:S/binary, R/binary>>, _) -> {other, R};
term(<<77, S:32, _, _:S/binary, R/binary>>, _) -> {other, R};
term(<<70, _:64, R/binary>>, _) -> {other, R};
term(<<99, _:31/binary, R/binary>>, _) -> {other, R};
term(<<110, S, _, _:S/binary, R/binary>>, _) -> {other, R};
term(<<111, S:32, _, _:S/binary, R/binary>>, _) -> {other, R};
term(<<116, N:32, R/binary>>, D) -> {_, R1} = terms(2 * N, R, D, []), {other, R1};
term(<<113, R/binary>>, D) -> {_, R1} = terms(3, R, D, []), {other, R1};
term(<<Tag, _/binary>>, _) -> throw({bad_file, {external_term, Tag}});
term(<<>>, _) -> throw({bad_file, external_term}).

tuple(N, Bin, Depth) ->
    {Terms, Rest} = terms(N, Bin, Depth, []),
    {{tuple, Terms}, Rest}.

terms(0, Bin, _, Acc) -> {lists:reverse(Acc), Bin};
terms(N, Bin, Depth, Acc) ->
    {Term, Rest} = term(Bin, Depth + 1),
    terms(N - 1, Rest, Depth, [Term | Acc]).

utf8(Latin1) ->
    << <<C/utf8>> || <<C>> <= Latin1 >>.

%% A list with one element more at its end: what is replaced at its head, what at its tail, as {Old, New}.
-spec append(binary(), binary()) -> {{binary(), binary()}, {binary(), binary()}}.
append(<<131, 106>>, Element) ->
    {{<<131, 106>>, <<131, 108, 1:32>>}, {<<>>, <<Element/binary, 106>>}};
append(<<131, 108, N:32, _/binary>> = List, Element) ->
    true = binary:last(List) =:= 106 orelse throw({bad_file, attributes}),
    {{<<131, 108, N:32>>, <<131, 108, (N + 1):32>>}, {<<106>>, <<Element/binary, 106>>}};
append(_, _) ->
    throw({bad_file, attributes}).

%% {Name, [{Key, Value}]} without the version byte; values are atom names or numbers. The same bytes on every release.
-spec attribute(binary(), [{binary(), binary() | non_neg_integer()}]) -> binary().
attribute(Name, Pairs) ->
    List = << <<104, 2, (atom(K))/binary, (value(V))/binary>> || {K, V} <- Pairs >>,
    <<104, 2, (atom(Name))/binary, 108, (length(Pairs)):32, List/binary, 106>>.

value(V) when is_binary(V) -> atom(V);
value(V) when V < 256 -> <<97, V>>;
value(V) -> <<98, V:32>>.

atom(Name) -> <<119, (byte_size(Name)), Name/binary>>.
